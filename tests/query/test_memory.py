"""A query's memory does not grow with the store: two million records, one process."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import msgspec
import numpy as np
import psycopg
import pytest
import world
from serving import listening, until

from logweir.core import columns, record, segment
from logweir.core.columns import Columns

SEGMENTS = 125
RECORDS = 16_000
LAYOUT_ENTRY_BYTES = 9
MAX_PEAK_BYTES = 300 << 20
NEEDLE = "5b1f0c9e7a6d4c3b9e8f7a6b5c4d3e2f"


def template(needle: str = "") -> Columns:
    """Records as a shop's services write them, all within one hour."""
    rng = random.Random(1)
    label_sets = tuple(
        record.labels({"service": f"svc-{s}", "level": level, "host": f"h{s % 5}"})
        for s in range(8)
        for level in ("info", "warn", "error")
    )
    paths = [f"/api/v2/{name}/{rng.randrange(10**6)}" for name in ("cart", "user", "order")] * 50
    messages = [
        f"{rng.choice(('GET', 'POST'))} {rng.choice(paths)} {rng.choice((200, 404, 500))} in "
        f"{rng.randrange(5000)} ms for user {rng.randrange(10**5)} from 10.0.{n % 256}.{n % 199}"
        for n in range(RECORDS)
    ]
    messages[RECORDS // 2] += f" request {needle}: the shelf is bare" if needle else ""
    attributes = [
        msgspec.json.encode(
            {"http": {"status": n % 500, "bytes": n * 7}, "region": f"eu-{n % 3}", "attempt": n % 4}
        )
        for n in range(RECORDS)
    ]
    numbers = np.arange(RECORDS)
    return Columns(
        n=RECORDS,
        time_ns=numbers * (3600 * 10**9 // RECORDS),
        label_set=(numbers * 7 % len(label_sets)).astype(np.uint32),
        label_sets=label_sets,
        message=columns.join([text.encode() for text in messages]),
        trace=b"",
        span=b"",
        attributes=columns.join(attributes),
        extra=b"",
        flags=np.zeros(RECORDS, np.uint8),
        block=np.full(RECORDS, 1 << 40, np.uint64),
        index=numbers.astype(np.uint32),
    )


def moved(whole: segment.Segment, records: Columns, start_ns: int) -> segment.Segment:
    """The same segment at another time: its first column and what comes of it are new."""
    empty = dict.fromkeys(columns.TEXTS, b"")
    plain = msgspec.structs.replace(records, time_ns=records.time_ns + start_ns, **empty)
    other = segment.encode(whole.pipeline, plain, whole.raw_bytes)
    old, new = (segment.places(one.layout, one.codec)["time"].length for one in (whole, other))
    return msgspec.structs.replace(
        whole,
        min_ts=other.min_ts,
        max_ts=other.max_ts,
        counts=other.counts,
        layout=other.layout[:LAYOUT_ENTRY_BYTES] + whole.layout[LAYOUT_ENTRY_BYTES:],
        body=other.body[:new] + whole.body[old:],
    )


async def fill(tenant: world.Tenant, end_ns: int) -> None:
    """Two million records, an hour each segment, a needle in one of them."""
    fields = ", ".join(segment.Segment.__struct_fields__)
    places = ", ".join(["%s"] * 6 + ["%b"] * 3 + ["%s", "%b", "%b"])
    insert = f"insert into segments ({fields}) values ({places})".encode()
    plain, special = template(), template(NEEDLE)
    whole = {
        id(one): segment.encode(tenant.pipeline, one, RECORDS * 330) for one in (plain, special)
    }
    async with await psycopg.AsyncConnection.connect(
        tenant.conninfo("k"), autocommit=True
    ) as connection:
        for number in range(SEGMENTS):
            of = special if number == SEGMENTS // 3 else plain
            start_ns = end_ns - (number + 1) * 3600 * 10**9
            await connection.execute("select ensure_partition(%s)", [start_ns])
            made = moved(whole[id(of)], of, start_ns)
            await connection.execute(insert, msgspec.structs.astuple(made))


@contextlib.asynccontextmanager
async def process(binding: msgspec.Struct, folder: Path) -> AsyncIterator[tuple[str, list[int]]]:
    """The role as a process, and a list that gets its peak of memory when it has ended."""
    http, ops = listening(), listening()
    path = folder / "query.json"
    path.write_bytes(msgspec.json.encode(binding))
    program = Path(__file__).with_name("query_process.py")
    role = subprocess.Popen(  # noqa: ASYNC220 - takes no time
        [sys.executable, program, path, str(http.fileno()), str(ops.fileno())],
        pass_fds=[http.fileno(), ops.fileno()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    url, ops_url = (f"http://127.0.0.1:{one.getsockname()[1]}" for one in (http, ops))
    http.close()
    ops.close()
    peak: list[int] = []
    try:
        async with httpx2.AsyncClient() as client:

            async def is_ready() -> bool:
                assert role.poll() is None, "the role ended"
                with contextlib.suppress(httpx2.TransportError):
                    return (await client.get(f"{ops_url}/readyz")).status_code == 200
                return False

            await until(is_ready)
        yield url, peak
        role.send_signal(signal.SIGTERM)
        output, _ = await asyncio.to_thread(role.communicate, None, 20)
        peak.append(int(output))
    finally:
        role.kill()
        await asyncio.to_thread(role.communicate)


@pytest.mark.slow
async def test_two_million_records_are_searched_and_counted_in_little_memory(
    tenant, query_key, binding, tmp_path, capsys
):
    began_s = time.monotonic()
    end_ns = time.time_ns() // (60 * 10**9) * 60 * 10**9
    await fill(tenant, end_ns)
    took = {"to fill": time.monotonic() - began_s}
    everything = {"start": end_ns - (SEGMENTS + 1) * 3600 * 10**9, "end": end_ns}
    counts: dict[str, int] = {}

    async with process(binding, tmp_path) as (url, peak):
        headers = {"authorization": f"Bearer {query_key}"}
        async with httpx2.AsyncClient(base_url=f"{url}/api/v1", headers=headers) as client:

            async def ask(name: str, path: str, **asked: object) -> dict:
                began_s = time.monotonic()
                answer = await client.get(path, params=everything | asked, timeout=60)
                took[name] = time.monotonic() - began_s
                assert answer.status_code == 200, answer.text
                found = answer.json()
                assert found["stopped"] in (None, "limit"), found["stopped"]
                return found

            newest = await ask("newest 5000", "/query", limit=5000)
            oldest = await ask("oldest 5000", "/query", limit=5000, direction="forward")
            needle = await ask("needle", "/query", query=f"{{}} |= `{NEEDLE}`")
            rare = await ask("scan for a rare text", "/query", query='{} |= "shelf is bare"')
            expression = await ask(
                "scan by expression", "/query", query='{} |~ "user 999[0-4]9 .*x$"'
            )
            minutes = await ask("histogram", "/histogram", by="level,host")
            rows = await ask("histogram of rows", "/histogram", query='{} |= "GET"', by="service")
            fields = await ask("fields", "/fields", limit=5000)
            for name, found in (("histogram", minutes), ("rows", rows)):
                counts[name] = sum(sum(one["counts"]) for one in found["series"])
            together = await asyncio.gather(
                *(ask(f"scan {n} of 4", "/query", query=f'{{}} |= "no {n}"') for n in range(4))
            )

    with capsys.disabled():
        figures = ", ".join(f"{name} {value:.2f} s" for name, value in took.items())
        print(f"\n2 M records: peak {peak[0] / 2**20:.0f} MiB; {figures}")
    assert len(newest["records"]) == len(oldest["records"]) == 5000
    assert len(needle["records"]) == 1
    assert needle["stats"]["opened"] <= 4
    assert rare["records"] == needle["records"]
    assert rare["stats"]["opened"] == SEGMENTS
    assert expression["records"] == []
    assert counts["histogram"] == SEGMENTS * RECORDS
    assert 0 < counts["rows"] < SEGMENTS * RECORDS
    assert fields["sampled"] == 5000
    assert [one["stats"]["opened"] for one in together] == [SEGMENTS] * 4
    assert peak[0] < MAX_PEAK_BYTES
