"""What the rows are measured against: the simplest thing that does a part of the work."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import msgspec
import site_

from logweir.ingest.native import WireRecord
from logweir.standalone import binaries

_EPOCH_SHIFT_S = 946_684_800
"""PostgreSQL's binary timestamps count from 2000."""

_decoder = msgspec.json.Decoder(WireRecord)


def decode_cpu_s(lines: list[bytes], batch: int) -> float:
    """CPU seconds of one typed decode of the same bodies, attributes raw, nothing else."""
    bodies = [b"\n".join(lines[at : at + batch]) for at in range(0, len(lines), batch)]
    began_s = time.process_time()
    for body in bodies:
        _decoder.decode_lines(body)
    return time.process_time() - began_s


def grep_s(path: Path, needle: str) -> float:
    """Seconds of `grep -cF` over a file that is in the page cache."""
    began_s = time.monotonic()
    # Not to /dev/null: grep stops at the first match when nobody can see its count.
    subprocess.run(["grep", "-cF", needle, path], capture_output=True, check=True)
    return time.monotonic() - began_s


class RowTable:
    """The same records as rows, as a team without a log platform keeps them."""

    def __init__(self, site: site_.Site, lines: list[bytes], *, with_indexes: bool = True) -> None:
        self._site = site
        self._with_indexes = with_indexes
        self._file = Path(tempfile.mkstemp(prefix="logweir-rows-", dir=site.folder)[1])
        self._file.chmod(0o644)
        _write_binary(lines, self._file)
        self._psql = binaries.postgres().beside("psql")

    def copy_s(self, *, keep: bool = False) -> float:
        """Seconds of `psql \\copy` in binary into a new table; dropped again unless `keep`."""
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
        began_s = time.monotonic()
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
        seconds = time.monotonic() - began_s
        if keep:
            self._site.sql.execute("analyze bench_rows")
        else:
            self._site.sql.execute("drop table bench_rows")
        return seconds

    def group_by_s(self) -> float:
        """Seconds of a histogram per level and minute over the rows."""
        began_s = time.monotonic()
        self._site.sql.execute(
            "select date_trunc('minute', ts), level, count(*) from bench_rows group by 1, 2"
        ).fetchall()
        return time.monotonic() - began_s

    def drop(self) -> None:
        self._site.sql.execute("drop table if exists bench_rows")
        self._file.unlink()


def _write_binary(lines: list[bytes], path: Path) -> None:
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


def bare_uvicorn_cpu_s(load: Path, head: Path, bodies: Path, requests: int) -> float:
    """CPU seconds of a bare ASGI application that reads the body, under the same load."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-c", _BARE, str(port)])
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        before = machine.cpu({"bare": server.pid})
        subprocess.run(
            [load, "127.0.0.1", str(port), head, bodies, "64", str(requests)],
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return machine.cpu({"bare": server.pid}).since(before).total_s
    finally:
        server.terminate()
        server.wait()
