"""The rows of the table: each runs its subject and its limit in turn, and compares them pair by pair.

A row gives figures a repetition: a value, the limit's value, and their ratio. CPU is of the
servers alone; the load generator's is not counted.
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import corpus
import limits
import machine
import msgspec
import site_
import websockets
import zstandard

START_NS = 1_780_272_000_000_000_000  # 2026-06-01, long before today: no record is in the future
BATCH = 1000
SENDERS = 16
SERVERS = ("ingest", "valkey", "collector", "postgres")
NEEDLES = 5


class Figure(NamedTuple):
    """One row's result: the medians of its repetitions, and their spread."""

    row: str
    corpus: str
    value: float
    unit: str
    limit: float
    ratio: float
    low: float
    high: float
    hold: float
    aim: float
    is_larger_better: bool = False
    note: str = ""

    @property
    def holds(self) -> bool:
        return self.ratio >= self.hold if self.is_larger_better else self.ratio <= self.hold


def figure(
    row: str,
    kind: str,
    unit: str,
    pairs: list[tuple[float, float]],
    hold: float,
    aim: float,
    **more: Any,
) -> Figure:
    """Return the figure of (value, limit) pairs."""
    ratios = [value / limit for value, limit in pairs]
    return Figure(
        row,
        kind,
        statistics.median(value for value, _ in pairs),
        unit,
        statistics.median(limit for _, limit in pairs),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        hold,
        aim,
        **more,
    )


class Size(NamedTuple):
    """How much is measured."""

    records: int
    ingest_records: int
    repetitions: int
    single_requests: int
    probes: int


SIZES = {
    "full": Size(2_000_000, 400_000, 5, 40_000, 200),
    "quick": Size(200_000, 60_000, 3, 8_000, 40),
}


class Bench:
    """The state of a run."""

    def __init__(
        self, site: site_.Site, size: Size, load: Path, say: Callable[[str], None]
    ) -> None:
        self.site = site
        self.size = size
        self.load = load
        self.say = say
        self.folder = site.folder
        self.figures: list[Figure] = []
        self.lines: dict[str, list[bytes]] = {}
        self._tenants = 0

    def add(self, found: Figure) -> None:
        self.figures.append(found)
        mark = "holds" if found.holds else "FALLS SHORT"
        self.say(
            f"{found.row} ({found.corpus}): {found.ratio:.3g} ({found.low:.3g} to {found.high:.3g}), {mark}"
        )

    def corpus(self, kind: str) -> Path:
        path = corpus.ndjson(kind, self.size.records, START_NS)
        if kind not in self.lines:
            self.lines[kind] = path.read_bytes().splitlines()
        return path

    def tenant(self) -> site_.Tenant:
        self._tenants += 1
        made = self.site.tenant(f"bench-{self._tenants}")
        made.keep_keeper_away()
        return made

    def send(
        self,
        tenant: site_.Tenant,
        bodies: Path,
        requests: int,
        senders: int = SENDERS,
        rate: float = 0,
    ) -> dict[str, Any]:
        """Send bodies straight to ingest; return what the load generator measured."""
        head = tenant.head(self.folder / "head")
        done = subprocess.run(
            [
                self.load,
                "127.0.0.1",
                str(self.site.ingest_port),
                head,
                bodies,
                str(senders),
                str(requests),
                str(rate),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)


def ingest_rows(bench: Bench) -> None:
    """HTTP to committed: rate against \\copy into an indexed table, CPU against decoding alone."""
    bench.corpus("web")
    lines = bench.lines["web"][: bench.size.ingest_records]
    bodies = bench.folder / "bodies"
    requests = corpus.bodies(lines, BATCH, bodies)
    table = limits.RowTable(bench.site, lines)
    rates, cpus = [], []
    for repetition in range(bench.size.repetitions + 1):
        tenant = bench.tenant()
        before, began_s = bench.site.cpu(), time.monotonic()
        bench.send(tenant, bodies, requests)
        seconds = tenant.wait_stored(len(lines)) - began_s
        time.sleep(0.3)
        used = bench.site.cpu().since(before)
        copy_rate = len(lines) / table.copy_s()
        decode_s = limits.decode_cpu_s(lines, BATCH)
        if repetition == 0:
            continue  # warm-up
        rates.append((len(lines) / seconds, copy_rate))
        server_s = sum(used.by_name[name] for name in SERVERS)
        cpus.append((server_s / len(lines) * 1e6, decode_s / len(lines) * 1e6))
        parts = ", ".join(f"{name} {used.by_name[name] / len(lines) * 1e6:.2f}" for name in SERVERS)
        bench.say(
            f"  {len(lines) / seconds:,.0f} records/s (copy {copy_rate:,.0f}); CPU s/M: {parts}"
        )
    table.drop()
    bench.add(
        figure(
            "HTTP to committed, batches of 1000 ÷ psql \\copy into indexed rows",
            "web",
            "records/s",
            rates,
            2.0,
            3.5,
            is_larger_better=True,
        )
    )
    bench.add(figure("server CPU per million records ÷ decode only", "web", "s", cpus, 8, 5))


def single_row(bench: Bench) -> None:
    """Single-record POSTs at 64 connections: CPU of ingest and Redis against bare uvicorn."""
    bench.corpus("web")
    lines = bench.lines["web"][:20_000]
    bodies = bench.folder / "singles"
    corpus.bodies(lines, 1, bodies)
    pairs = []
    count = bench.size.single_requests
    for repetition in range(bench.size.repetitions + 1):
        tenant = bench.tenant()
        before = bench.site.cpu()
        seen = bench.send(tenant, bodies, count, 64)
        used = bench.site.cpu().since(before)
        bare_s = limits.bare_uvicorn_cpu_s(
            bench.load, tenant.head(bench.folder / "head"), bodies, count
        )
        tenant.wait_stored(count)
        if repetition:
            mine_s = used.by_name["ingest"] + used.by_name["valkey"]
            pairs.append((mine_s / count * 1e6, bare_s / count * 1e6))
            bench.say(f"  {count / seen['seconds']:,.0f}/s, p99 {seen['latency_ms']['p99']:.1f} ms")
    bench.add(
        figure(
            "single-record POSTs, 64 connections: CPU per request ÷ bare uvicorn",
            "web",
            "µs",
            pairs,
            3.0,
            2.0,
        )
    )


def load_all(bench: Bench, kind: str) -> site_.Tenant:
    """Put a whole corpus into a tenant, with needles; the keeper stands still."""
    path = bench.corpus(kind)
    lines = list(bench.lines[kind])
    step = len(lines) // NEEDLES
    for number in range(NEEDLES):
        at = number * step + step // 2
        fields = json.loads(lines[at])
        fields["message"] = f"a zebra crossing {needle_id(kind)} was seen"
        lines[at] = msgspec.json.encode(fields)
    bodies = bench.folder / f"all-{kind}"
    requests = corpus.bodies(lines, BATCH, bodies)
    tenant = bench.tenant()
    bench.site.sql.execute("checkpoint")
    wal_before = bench.site.wal_bytes()
    bench.send(tenant, bodies, requests)
    tenant.wait_stored(len(lines))
    tenant.wal_bytes = bench.site.wal_bytes() - wal_before
    bodies.unlink()
    raw = bench.folder / f"{kind}.ndjson"
    raw.write_bytes(b"\n".join(lines) + b"\n")
    tenant.raw = raw
    bench.lines[kind] = lines
    del path
    return tenant


def needle_id(kind: str) -> str:
    """The same rare id in each corpus's needles."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"needle {kind}"))


def disk_rows(bench: Bench, tenant: site_.Tenant, kind: str) -> None:
    """Disk against the raw bytes and against compressed NDJSON; WAL against disk."""
    disk, raw = tenant.disk_bytes(), tenant.raw.stat().st_size
    compressor = zstandard.ZstdCompressor(level=3)
    compressed = 0
    with tenant.raw.open("rb") as file:
        while block := file.read(1_000_000):
            compressed += len(compressor.compress(block))
    count = len(bench.lines[kind])
    bench.say(
        f"  {kind}: {disk / count:.1f} B/record on disk, {raw / count:.1f} raw, {compressed / count:.1f} zstd -3"
    )
    if kind == "web":
        bench.add(figure("disk ÷ raw NDJSON, hot", kind, "bytes", [(disk, raw)], 0.13, 0.10))
        bench.add(
            figure("WAL ÷ disk, hot path", kind, "bytes", [(tenant.wal_bytes, disk)], 1.1, 1.02)
        )
    hold, aim = (0.80, 0.70) if kind == "web" else (0.98, 0.89)
    bench.add(
        figure(
            "disk ÷ zstd -3 of NDJSON in 1 MB blocks, hot, with filter",
            kind,
            "bytes",
            [(disk, compressed)],
            hold,
            aim,
        )
    )


def query_rows(bench: Bench, tenant: site_.Tenant, kind: str) -> None:
    """Needles against grep, a histogram against GROUP BY."""
    window = {
        "start": str(START_NS),
        "end": str(START_NS + 2 * corpus.SPAN_S * 10**9),
        "limit": 100,
    }
    scan, probe, counts = [], [], []
    table = limits.RowTable(bench.site, bench.lines[kind], with_indexes=False)
    table.copy_s(keep=True)
    for repetition in range(bench.size.repetitions + 1):
        grep_s = limits.grep_s(tenant.raw, "zebra crossing")
        began_s = time.monotonic()
        found = tenant.get("/api/v1/query", query='{} |= "zebra crossing"', **window)
        scan_s = time.monotonic() - began_s
        assert len(found["records"]) == NEEDLES, found
        began_s = time.monotonic()
        quick = tenant.get("/api/v1/query", query=f'{{}} |= "{needle_id(kind)}"', **window)
        probe_s = time.monotonic() - began_s
        assert len(quick["records"]) == NEEDLES, quick
        began_s = time.monotonic()
        histogram = tenant.get(
            "/api/v1/histogram", query="{}", step="60s", start=window["start"], end=window["end"]
        )
        count_s = time.monotonic() - began_s
        total = sum(sum(one["counts"]) for one in histogram["series"])
        assert total == len(bench.lines[kind]), total
        group_s = table.group_by_s()
        if repetition:
            scan.append((scan_s * 1000, grep_s * 1000))
            probe.append((probe_s * 1000, grep_s * 1000))
            counts.append((count_s * 1000, group_s * 1000))
    bench.say(
        f"  filter opened {quick['stats']['opened']} of {quick['stats']['segments']} segments"
    )
    table.drop()
    bench.add(figure("needle, scan ÷ grep -cF on the raw file", kind, "ms", scan, 1.0, 0.3))
    bench.add(figure("needle, with filter ÷ grep -cF", kind, "ms", probe, 0.05, 0.01))
    if kind == "web":
        bench.add(
            figure(
                "histogram per level and minute ÷ GROUP BY on rows", kind, "ms", counts, 0.1, 0.02
            )
        )


def tail_row(bench: Bench) -> None:
    """A live tail: from before the request is sent to the frame, p99, at some 200 records/s."""

    async def measure() -> float:
        tenant = bench.tenant()
        url = bench.site.url.replace("http", "ws") + "/api/v1/tail?query={}"
        ages_ms: list[float] = []
        async with websockets.connect(
            url, additional_headers={"x-api-key": tenant.query_key}
        ) as socket:
            while "live" not in json.loads(await socket.recv()):
                pass

            async def receive() -> None:
                while len(ages_ms) < bench.size.probes * 10:
                    frame = json.loads(await socket.recv())
                    now_ns = time.time_ns()
                    ages_ms.extend(
                        (now_ns - int(one["message"])) / 1e6 for one in frame.get("records", ())
                    )

            task = asyncio.create_task(receive())
            head = {"authorization": f"Bearer {tenant.ingest_key}"}
            import httpx2

            async with httpx2.AsyncClient(headers=head, trust_env=False) as client:
                while not task.done():
                    record = {"message": str(time.time_ns()), "level": "info", "service": "probe"}
                    await client.post(
                        f"{bench.site.url}/t/{tenant.name}/{tenant.name}/ingest", json=record
                    )
                    await asyncio.sleep(0.005)
            await task
        return statistics.quantiles(ages_ms, n=100)[98]

    found = [asyncio.run(measure()) for _ in range(min(3, bench.size.repetitions))]
    pairs = [(one, 1.0) for one in found]
    bench.add(figure("live tail, accept to frame, p99", "probe", "ms", pairs, 250, 50))


def queryable_row(bench: Bench, capacity: float) -> None:
    """From a request to its record in a query's answer, p99, at half of the measured capacity."""
    lines = bench.lines["web"][:100_000]
    bodies = bench.folder / "half"
    corpus.bodies(lines, BATCH, bodies)
    tenant = bench.tenant()
    rate = capacity / 2 / BATCH
    seconds = bench.size.probes * 0.15 + 5
    head = tenant.head(bench.folder / "head")
    loader = subprocess.Popen(
        [
            bench.load,
            "127.0.0.1",
            str(bench.site.ingest_port),
            head,
            bodies,
            str(SENDERS),
            str(int(rate * seconds)),
            str(rate),
        ],
        stdout=subprocess.DEVNULL,
    )
    waits_s = []
    key = {"authorization": f"Bearer {tenant.ingest_key}"}
    try:
        while len(waits_s) < bench.size.probes and loader.poll() is None:
            token = uuid.uuid4().hex
            began_s = time.monotonic()
            bench.site.http.post(
                f"{bench.site.url}/t/{tenant.name}/{tenant.name}/ingest",
                json={"message": f"probe {token}", "level": "info", "service": "probe"},
                headers=key,
            ).raise_for_status()
            query = f'{{service="probe"}} |= "{token}"'
            while not tenant.get("/api/v1/query", query=query, start="-5m")["records"]:
                time.sleep(0.02)
            waits_s.append(time.monotonic() - began_s)
    finally:
        loader.kill()
        loader.wait()
    p99 = statistics.quantiles(waits_s, n=100)[98]
    bench.say(f"  at {rate * BATCH:,.0f} records/s: p50 {statistics.median(waits_s):.2f} s")
    bench.add(figure("accept to queryable, p99 at 50 % load", "web", "s", [(p99, 1.0)], 2.0, 1.0))


def memory(bench: Bench) -> dict[str, int]:
    """Peak memory of each process in bytes, and of this program."""
    found = {name: machine.peak_bytes(pid) for name, pid in bench.site.pids.items()}
    found["benchmark"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found


def run_all(bench: Bench, only: set[str]) -> None:
    """Run the rows of some parts: ingest, single, store, live; without a choice all of them."""

    def wants(part: str) -> bool:
        return not only or part in only

    if wants("ingest"):
        ingest_rows(bench)
    if wants("single"):
        single_row(bench)
    if wants("store"):
        for kind in corpus.KINDS:
            bench.say(f"loading {bench.size.records:,} records of {kind}")
            tenant = load_all(bench, kind)
            disk_rows(bench, tenant, kind)
            query_rows(bench, tenant, kind)
            tenant.raw.unlink()
    if wants("live"):
        tail_row(bench)
        bench.corpus("web")
        queryable_row(bench, bench.figures[0].value if wants("ingest") else 100_000)
