"""The rows of what goes in and comes out at once; `store_rows` has those of what is stored.

A row runs its subject and its limit in turn, and compares them pair by pair, after a warm-up. CPU
is of the servers alone; the load generator's is not counted.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time

import bench
import corpus
import httpx2
import limits
import site_
import websockets
from bench import Bench
from figures import Goal, figure, other_clock

COMMITTED = Goal(
    *("committed", "HTTP to committed, batches of 1000 ÷ psql \\copy into indexed rows"),
    *("records/s", 2.0, 3.5, True),
)
CPU = Goal("cpu", "server CPU per million records ÷ decode only", "s", 8, 5)
SINGLE = Goal(
    *("single", "single-record POSTs, 64 connections: CPU per request ÷ bare uvicorn"),
    *("µs", 3.0, 2.0),
)
TAIL = Goal("tail", "live tail, accept to frame, p99", "ms", 250, 50)
QUERYABLE = Goal("queryable", "accept to queryable, p99 at 50 % load", "s", 2.0, 1.0)

SINGLES = 20_000
"""So many different records are sent one by one, in a cycle."""

PROBERS = 2
TAIL_PAUSE_S = 0.005
FALLBACK_RATE = 100_000
"""Records a second that count as the capacity when it was not measured in this run."""


def ingest_rows(run: Bench) -> None:
    """HTTP to committed: rate against \\copy into an indexed table, CPU against decoding alone."""
    count = run.size.records
    path = corpus.ndjson("web", count, bench.START_NS)
    bodies = run.folder / "bodies"
    with path.open("rb") as file:
        requests = corpus.bodies(file, bench.BATCH, bodies)
    with path.open("rb") as file:
        table = limits.RowTable(run.site, (line.rstrip(b"\n") for line in file))
    rates, rate_cpus, cpus, alive, walls = [], [], [], [], []
    millions = count / 1e6
    for repetition in range(run.size.repetitions + 1):
        mine = run.stored(run.tenant(), bodies, requests, count)
        copy = table.copy()
        decode_s = limits.decode_cpu_s(bodies)
        alive_s = limits.decode_cpu_s(bodies, bench.SENDERS)
        used = run.last_used.by_name
        parts = ", ".join(f"{name} {used[name] / millions:.2f}" for name in site_.WRITERS)
        run.say(
            f"  {count / mine.wall_s:,.0f} records/s (copy {count / copy.wall_s:,.0f});"
            f" CPU s/M: {parts}; copy {copy.cpu_s / millions:.2f}, decode {decode_s / millions:.2f}"
        )
        if repetition == 0:
            continue  # warm-up
        rates.append((count / mine.wall_s, count / copy.wall_s))
        rate_cpus.append((mine.cpu_s / millions, copy.cpu_s / millions))
        cpus.append((mine.cpu_s / millions, decode_s / millions))
        alive.append(alive_s / millions)
        walls.append(mine.wall_s / millions)
    table.drop()
    bodies.unlink()
    beside = other_clock("CPU", "s/M", rate_cpus)
    run.add(figure(COMMITTED, "web", rates, beside=beside, note=f"CPU s/M, last: {parts}"))
    note = (
        f"decode with the records of {bench.SENDERS} bodies alive: {statistics.median(alive):.2f}"
        f" s/M, with each body's dropped at once (the limit):"
        f" {statistics.median(limit for _, limit in cpus):.2f}; gc on"
    )
    beside = f"wall {statistics.median(walls):.3g} s/M"
    run.add(figure(CPU, "web", cpus, beside=beside, note=note))


def single_row(run: Bench) -> None:
    """Single-record POSTs at 64 connections: CPU of ingest and Redis against bare uvicorn."""
    bodies = run.folder / "singles"
    with corpus.ndjson("web", run.size.records, bench.START_NS).open("rb") as file:
        corpus.bodies(itertools.islice(file, SINGLES), 1, bodies)
    cpus, walls = [], []
    count = run.size.single_requests
    for repetition in range(run.size.repetitions + 1):
        tenant = run.tenant()
        before = run.site.cpu()
        seen = run.send(tenant, bodies, count, 64)
        used = run.site.cpu().since(before)
        bare = limits.bare_uvicorn(run.load, run.heads([tenant]), bodies, count)
        tenant.wait_stored(count)
        if repetition:
            mine_s = used.by_name["ingest"] + used.by_name["valkey"]
            cpus.append((mine_s / count * 1e6, bare.cpu_s / count * 1e6))
            walls.append((seen["seconds"] / count * 1e6, bare.wall_s / count * 1e6))
            run.say(f"  {count / seen['seconds']:,.0f}/s, p99 {seen['latency_ms']['p99']:.1f} ms")
    run.add(figure(SINGLE, "web", cpus, beside=other_clock("wall", "µs", walls)))


def tail_row(run: Bench) -> None:
    """A live tail: from before the request is sent to the frame, p99, at some 200 records/s."""
    tenant = run.tenant(is_read=True)
    found = [
        asyncio.run(_tail_p99_ms(tenant, run.size.probes * 20))
        for _ in range(run.size.repetitions + 1)
    ]
    run.add(figure(TAIL, "probe", [(one, 1.0) for one in found[1:]]))


async def _tail_p99_ms(tenant: site_.Tenant, count: int) -> float:
    url = tenant.site.url.replace("http", "ws") + "/api/v1/tail?query={}"
    key = {"x-api-key": tenant.query_key}
    ages_ms: list[float] = []
    async with websockets.connect(url, additional_headers=key) as socket:
        while "live" not in json.loads(await socket.recv()):
            pass

        async def receive() -> None:
            while len(ages_ms) < count:
                frame = json.loads(await socket.recv())
                now_ns = time.time_ns()
                records = frame.get("records", ())
                ages_ms.extend((now_ns - int(one["message"])) / 1e6 for one in records)

        task = asyncio.create_task(receive())
        await _send_times(tenant, task)
        await task
    return bench.p99(ages_ms)


async def _send_times(tenant: site_.Tenant, until: asyncio.Task[None]) -> None:
    """Send records whose message is the time at which they are sent."""
    head = {"authorization": f"Bearer {tenant.ingest_key}"}
    url = f"{tenant.site.url}/t/{tenant.name}/{tenant.name}/ingest"
    async with httpx2.AsyncClient(headers=head, trust_env=False) as client:
        while not until.done():
            record = {"message": str(time.time_ns()), "level": "info", "service": "probe"}
            await client.post(url, json=record)
            await asyncio.sleep(TAIL_PAUSE_S)


def queryable_row(run: Bench) -> None:
    """From a request to its record in a query's answer, p99, at half of the measured capacity."""
    bodies = run.folder / "half"
    with corpus.ndjson("web", run.size.records, bench.START_NS).open("rb") as file:
        corpus.bodies(itertools.islice(file, 100_000), bench.BATCH, bodies)
    committed = run.found(COMMITTED.key)
    rate = (committed.value if committed else FALLBACK_RATE) / 2 / bench.BATCH
    tenant, found = run.tenant(is_read=True), []
    for _ in range(run.size.repetitions + 1):
        loader = run.loading([tenant], bodies, int(rate * site_.STORED_WAIT_S), rate=rate)
        try:
            time.sleep(1)
            found.append(bench.probe_waits_s([tenant] * PROBERS, run.size.probes))
            if loader.poll() is not None:
                raise RuntimeError("the load ended before the probes")
        finally:
            loader.kill()
            loader.communicate()
    waits_s = [one for repetition in found[1:] for one in repetition]
    note = (
        f"at {rate * bench.BATCH:,.0f} records/s; p50 {statistics.median(waits_s):.2f} s;"
        f" p99 of all {len(waits_s)} probes, spread of the repetitions' own"
    )
    one = figure(QUERYABLE, "web", [(bench.p99(each), 1.0) for each in found[1:]], note=note)
    run.add(one._replace(value=bench.p99(waits_s), ratio=bench.p99(waits_s)))
