"""What the rows are measured against: the simplest thing that does a part of the work.

Decode only. How many decoded records stay alive changes its cost: memory that was just freed is
used again while it is in the processor's cache, fresh memory has to be mapped first. On 2 x EPYC,
CPU seconds per million records of *web* in bodies of 1000 (attributes raw):

    0.28    each body's records are dropped before the next is decoded
    0.33    those of 16 bodies are alive, one for each sender: what a busy ingest looks like
    0.51    all of 200 bodies are kept

The limit is the first, the strictest: nothing forces a server to keep records, so what keeping
costs is a cost of the server. The row's note has the second, of the same run. Python's garbage
collector is on, as in the servers; it makes no difference, because WireRecord takes no part in it.

The SQL limits run in the PostgreSQL of the same `up`, with its settings: 64 MB of shared buffers,
1 GB of WAL between checkpoints, no parallel workers in a query (here nor for Logweir's own).
"""

from __future__ import annotations

import collections
import contextlib
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import corpus
import machine
import msgspec
import site_
from figures import Cost

from logweir.ingest.native import WireRecord
from logweir.standalone import binaries

_EPOCH_SHIFT_S = 946_684_800
"""PostgreSQL's binary timestamps count from 2000."""

_decoder = msgspec.json.Decoder(WireRecord)


def decode_cpu_s(bodies: Path, alive: int = 0) -> float:
    """CPU seconds of one typed decode of the same bodies, attributes raw, nothing else.

    Args:
        bodies: as `corpus.bodies` writes them.
        alive: the records of how many bodies stay alive while the next is decoded.
    """
    kept: collections.deque[list[WireRecord]] = collections.deque(maxlen=alive)
    used_s = 0.0
    for body in corpus.parts(bodies):
        began_s = time.process_time()
        kept.append(_decoder.decode_lines(body))
        used_s += time.process_time() - began_s
    return used_s


def grep(path: Path, needle: str) -> Cost:
    """What `grep -cF` takes on one thread over a file that is in the page cache."""
    began_s, cpu_s = time.monotonic(), machine.children_cpu_s()
    # Not to /dev/null: grep stops at the first match when nobody can see its count.
    environment = {**os.environ, "LC_ALL": "C"}
    subprocess.run(["grep", "-cF", needle, path], capture_output=True, check=True, env=environment)
    return Cost(time.monotonic() - began_s, machine.children_cpu_s() - cpu_s)


class RowTable:
    """The same records as rows, as a team without a log platform keeps them."""

    def __init__(
        self, site: site_.Site, lines: Iterable[bytes], *, with_indexes: bool = True
    ) -> None:
        self._site = site
        self._with_indexes = with_indexes
        self._file = Path(tempfile.mkstemp(prefix="logweir-rows-", dir=site.folder)[1])
        self._file.chmod(0o644)
        _write_binary(lines, self._file)
        self._psql = binaries.postgres().beside("psql")

    def copy(self, *, keep: bool = False) -> Cost:
        """What `psql \\copy` in binary into a new table takes; dropped again unless `keep`."""
        statements = [
            "drop table if exists bench_rows",
            "create table bench_rows (ts timestamptz, level text, service text, host text,"
            " message text, trace_id text, span_id text, attributes jsonb)",
        ]
        if self._with_indexes:
            statements += [
                "create index on bench_rows using brin (ts)",
                "create index on bench_rows (service, ts)",
                "create index on bench_rows (trace_id)",
            ]
        for one in statements:
            self._site.sql.execute(one)
        before, psql_s, began_s = self._site.cpu(), machine.children_cpu_s(), time.monotonic()
        subprocess.run(
            [
                self._psql,
                "-q",
                self._site.postgres_url + "/logweir",
                "-c",
                f"\\copy bench_rows from '{self._file}' with (format binary)",
            ],
            check=True,
        )
        wall_s = time.monotonic() - began_s
        cpu_s = self._site.cpu().since(before).by_name["postgres"]
        found = Cost(wall_s, cpu_s + machine.children_cpu_s() - psql_s)
        if keep:
            self._site.sql.execute("analyze bench_rows")
        else:
            self._site.sql.execute("drop table bench_rows")
        return found

    def group_by(self) -> Cost:
        """What a histogram per level and minute over the rows takes."""
        before, began_s = self._site.cpu(), time.monotonic()
        self._site.sql.execute(
            "select date_trunc('minute', ts), level, count(*) from bench_rows group by 1, 2"
        ).fetchall()
        wall_s = time.monotonic() - began_s
        return Cost(wall_s, self._site.cpu().since(before).by_name["postgres"])

    def drop(self) -> None:
        self._site.sql.execute("drop table if exists bench_rows")
        self._file.unlink()


def _write_binary(lines: Iterable[bytes], path: Path) -> None:
    """The records in the format of COPY BINARY."""
    field = struct.Struct(">i").pack
    with path.open("wb") as file:
        file.write(b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0))
        for record in map(_decoder.decode, lines):
            micros = int(record.timestamp) // 1000 - _EPOCH_SHIFT_S * 1_000_000
            texts = (
                *(record.level, record.service, record.host or "", record.message),
                *(record.trace_id or "", record.span_id or ""),
            )
            row = [struct.pack(">hiq", 8, 8, micros)]
            for text in map(str.encode, texts):
                row += (field(len(text)), text)
            attributes = b"\1" + bytes(record.metadata)
            row += (field(len(attributes)), attributes)
            file.write(b"".join(row))
        file.write(struct.pack(">h", -1))


_REFUSING = """
import sys, uvicorn
async def app(scope, receive, send):
    headers = [(b"content-length", b"2"), (b"retry-after", b"1")]
    await send({"type": "http.response.start", "status": 429, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})
uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False, lifespan="off",
            server_header=False, date_header=False, http="httptools", loop="uvloop")
"""


@contextlib.contextmanager
def refusing() -> Iterator[int]:
    """A bare server that answers 429 to everything, without a look at it; its port."""
    with _serving(_REFUSING) as (port, _):
        yield port


_BARE = """
import asyncio, sys, uvicorn
async def app(scope, receive, send):
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})
uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False, lifespan="off",
            server_header=False, date_header=False, http="httptools", loop="uvloop")
"""


def bare_uvicorn(load: Path, head: Path, bodies: Path, requests: int) -> Cost:
    """What a bare ASGI application that reads the body takes under the same load."""
    with _serving(_BARE) as (port, pid):
        before, began_s = machine.cpu({"bare": pid}), time.monotonic()
        subprocess.run(
            [load, "127.0.0.1", str(port), head, bodies, "64", str(requests)],
            stdout=subprocess.DEVNULL,
            check=True,
        )
        wall_s = time.monotonic() - began_s
        return Cost(wall_s, machine.cpu({"bare": pid}).since(before).total_s)


@contextlib.contextmanager
def _serving(program: str) -> Iterator[tuple[int, int]]:
    """Run a server's program; its port and its process."""
    port = site_.free_port()
    server = subprocess.Popen([sys.executable, "-c", program, str(port)])
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        yield port, server.pid
    finally:
        server.terminate()
        server.wait()
