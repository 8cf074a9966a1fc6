"""The rows of a noisy neighbour: what tenant A notices of tenant B, who sends ten times its quota.

The limit is A's own latency in the same moment of the same machine while the same generator sends
the same requests to a bare server that answers 429 to all of them: what a machine that is shared
costs, whoever refuses. What B may send is stored meanwhile; that is in the figure, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import bench
import corpus
import httpx2
import limits
import site_
from bench import Bench
from figures import Goal, figure

SEND = Goal(
    *("noise-send", "a neighbour sends 10 times its quota: ingest p99 ÷ beside a bare 429"),
    *("ms", 2.0, 1.2),
)
READ = Goal(
    *("noise-read", "a neighbour sends 10 times its quota: query p99 ÷ beside a bare 429"),
    *("ms", 2.0, 1.2),
)

QUOTA = 2_000
"""Of B, in records a second."""

TIMES = 10
FLOOD_BATCH = 100
FLOOD_SENDERS = 64
RECORDS_OF_A = 20_000
PAUSE_S = 0.01
PROBES_A_SECOND = 10
"""So many seconds are measured: fewer samples than some hundred have no p99."""

QUERY = '{level="error"} |= "cart"'


def noise_rows(run: Bench) -> None:
    """A's p99 of ingest and of a query beside B's flood, and beside one that a bare server gets."""
    small, large, flood = (run.folder / f"noise-{name}" for name in ("small", "large", "flood"))
    with corpus.ndjson("web", run.size.records, bench.START_NS).open("rb") as file:
        lines = list(itertools.islice(file, RECORDS_OF_A))
    requests = corpus.bodies(iter(lines), bench.BATCH, large)
    corpus.bodies(iter(lines), 1, small)
    corpus.bodies(iter(lines), FLOOD_BATCH, flood)
    quiet = run.tenant(is_read=True)
    loud = run.tenant(quotas=f", recordsPerSecond: {QUOTA}")
    run.stored(quiet, large, requests, RECORDS_OF_A)
    heads, seconds = run.heads([loud]), run.size.probes / PROBES_A_SECOND
    records = list(corpus.parts(small))
    sends: list[tuple[float, float]] = []
    reads: list[tuple[float, float]] = []
    for repetition in range(run.size.repetitions + 1):
        with flooding(run.load, run.site.port, heads, flood):
            before = loud.stored()
            mine = asyncio.run(p99s_ms(quiet, records, seconds))
            stored = (loud.stored() - before) / seconds
        with limits.refusing() as port, flooding(run.load, port, heads, flood):
            bare = asyncio.run(p99s_ms(quiet, records, seconds))
        run.say(
            f"  p99 of ingest {mine[0]:.1f} ms (bare {bare[0]:.1f}), of a query {mine[1]:.1f} ms"
            f" (bare {bare[1]:.1f}); of the flood {stored:,.0f} records/s are stored"
        )
        if repetition:  # the first is a warm-up
            sends.append((mine[0], bare[0]))
            reads.append((mine[1], bare[1]))
    note = (
        f"{QUOTA * TIMES:,} records/s in requests of {FLOOD_BATCH} by the gateway, the quota is"
        f" {QUOTA:,}"
    )
    run.add(figure(SEND, "web", sends, note=note))
    run.add(figure(READ, "web", reads, note=note))


@contextlib.contextmanager
def flooding(load: Path, port: int, heads: Path, bodies: Path) -> Iterator[None]:
    """Send ten times what B may, and take no refusal as a reason to wait."""
    rate = QUOTA * TIMES / FLOOD_BATCH
    words = ("127.0.0.1", port, heads, bodies, FLOOD_SENDERS, int(rate * site_.STORED_WAIT_S))
    loader = subprocess.Popen(
        [load, *map(str, (*words, rate, 0))], stdout=subprocess.DEVNULL, text=True
    )
    try:
        time.sleep(0.5)
        yield
        if loader.poll() is not None:
            raise RuntimeError("the flood ended before the measurement")
    finally:
        loader.kill()
        loader.wait()


async def p99s_ms(
    tenant: site_.Tenant, records: list[bytes], seconds: float
) -> tuple[float, float]:
    """p99 of A's single-record requests and of its queries, both going on at the same time."""
    until_s = time.monotonic() + seconds
    send = f"{tenant.site.url}/t/{tenant.name}/{tenant.name}/ingest"
    params = {"query": QUERY, "start": str(bench.START_NS), "limit": "10"}
    bodies = itertools.cycle(records)
    async with httpx2.AsyncClient(timeout=60, trust_env=False) as client:

        async def post() -> httpx2.Response:
            key = {"authorization": f"Bearer {tenant.ingest_key}"}
            return await client.post(send, content=next(bodies), headers=key)

        async def ask() -> httpx2.Response:
            url, key = tenant.site.url + "/api/v1/query", {"x-api-key": tenant.query_key}
            return await client.get(url, params=params, headers=key)

        posts, asks = await asyncio.gather(times_ms(post, until_s), times_ms(ask, until_s))
    return bench.p99(posts), bench.p99(asks)


async def times_ms(ask: Callable[[], Awaitable[httpx2.Response]], until_s: float) -> list[float]:
    """How long each of some requests took, one after the other with a pause."""
    found = []
    while time.monotonic() < until_s:
        began_s = time.perf_counter()
        (await ask()).raise_for_status()
        found.append((time.perf_counter() - began_s) * 1000)
        await asyncio.sleep(PAUSE_S)
    return found
