"""The rows of what is stored: disk and WAL, needles against grep, a histogram against GROUP BY."""

from __future__ import annotations

import bench
import corpus
import limits
import site_
import zstandard
from bench import Bench
from figures import Goal, figure, other_clock

DISK_RAW = Goal("disk-raw", "disk ÷ raw NDJSON, hot", "bytes", 0.13, 0.10)
WAL = Goal("wal", "WAL ÷ disk, hot path", "bytes", 1.1, 1.02)
_ZSTD = "disk ÷ zstd -3 of NDJSON in 1 MB blocks, hot, with filter"
DISK_ZSTD = {
    "web": Goal("disk-zstd-web", _ZSTD, "bytes", 0.80, 0.70),
    "id-heavy": Goal("disk-zstd-id-heavy", _ZSTD, "bytes", 0.98, 0.89),
}
SCAN = Goal("scan", "needle, scan ÷ grep -cF on the raw file", "ms", 1.0, 0.3)
FILTER = Goal("filter", "needle, with filter ÷ grep -cF", "ms", 0.05, 0.01)
HISTOGRAM = Goal("histogram", "histogram per level and minute ÷ GROUP BY on rows", "ms", 0.1, 0.02)

NEEDLES = 5
TIMES = 10
"""A fast query is asked so often in a repetition: CPU is counted in ticks of 10 ms."""


def store_rows(run: Bench, kind: str) -> None:
    """Load a corpus, and measure what it takes on disk and to be read."""
    run.say(f"loading {run.size.records:,} records of {kind}")
    tenant = _load(run, kind)
    _disk_rows(run, tenant, kind)
    _query_rows(run, tenant, kind)
    tenant.raw.unlink()


def _load(run: Bench, kind: str) -> site_.Tenant:
    """Put a whole corpus into a tenant, with needles; the keeper stands still."""
    tenant, count = run.tenant(is_read=True), run.size.records
    with corpus.ndjson(kind, count, bench.START_NS).open("rb") as file, tenant.raw.open("wb") as to:
        to.writelines(bench.with_needles(file, count, kind, NEEDLES))
    bodies = run.folder / f"all-{kind}"
    with tenant.raw.open("rb") as file:
        requests = corpus.bodies(file, bench.BATCH, bodies)
    with run.site.without_autovacuum():
        run.site.sql.execute("checkpoint")
        wal_before = run.site.wal_bytes()
        run.send(tenant, bodies, requests)
        tenant.wait_stored(count)
        tenant.wal_bytes = run.site.wal_bytes() - wal_before
        tenant.vacuum_wal_bytes = tenant.vacuum()
    bodies.unlink()
    return tenant


def _disk_rows(run: Bench, tenant: site_.Tenant, kind: str) -> None:
    """Disk against the raw bytes and against compressed NDJSON; WAL against disk."""
    disk, raw, count = tenant.disk_bytes(), tenant.raw.stat().st_size, run.size.records
    compressor = zstandard.ZstdCompressor(level=3)
    compressed = 0
    with tenant.raw.open("rb") as file:
        while block := file.read(1_000_000):
            compressed += len(compressor.compress(block))
    note = (
        f"bytes a record: {disk / count:.1f} on disk, {raw / count:.1f} raw,"
        f" {compressed / count:.1f} zstd -3"
    )
    run.say(f"  {kind}: {note}")
    if kind == "web":
        run.add(figure(DISK_RAW, kind, [(disk, raw)], note=note))
        vacuumed = (tenant.wal_bytes + tenant.vacuum_wal_bytes) / disk
        wal_note = f"{vacuumed:.3g} with the first vacuum, a checkpoint before it; autovacuum off"
        run.add(figure(WAL, kind, [(tenant.wal_bytes, disk)], note=wal_note))
    run.add(figure(DISK_ZSTD[kind], kind, [(disk, compressed)], note=note))


def _query_rows(run: Bench, tenant: site_.Tenant, kind: str) -> None:
    """Needles against grep, a histogram against GROUP BY, all on the same records."""
    asked = Asked(tenant, kind, run.size.records, corpus.SPAN_S)
    with tenant.raw.open("rb") as file:
        table = limits.RowTable(run.site, (line.rstrip(b"\n") for line in file), with_indexes=False)
    table.copy(keep=True)
    seen = []
    for repetition in range(run.size.repetitions + 1):
        turn = (
            limits.grep(tenant.raw, "zebra crossing"),
            run.timed(asked.scan),
            run.timed(asked.probe, TIMES),
            run.timed(asked.histogram, TIMES),
            table.group_by(),
        )
        if repetition:
            seen.append(turn)
    table.drop()
    opened = asked.probe()["stats"]
    note = f"the filter opened {opened['opened']} of {opened['segments']} segments"
    for goal, subject, limit in ((SCAN, 1, 0), (FILTER, 2, 0), (HISTOGRAM, 3, 4)):
        if goal is HISTOGRAM and kind != "web":
            continue
        walls = [(turn[subject].wall_s * 1000, turn[limit].wall_s * 1000) for turn in seen]
        cpus = [(turn[subject].cpu_s * 1000, turn[limit].cpu_s * 1000) for turn in seen]
        beside = other_clock("CPU", "ms", cpus)
        run.add(figure(goal, kind, walls, beside=beside, note=note if goal is FILTER else ""))


class Asked:
    """The queries of these rows, each checked for its answer; they span all records."""

    def __init__(self, tenant: site_.Tenant, kind: str, count: int, span_s: int) -> None:
        self._tenant = tenant
        self._kind = kind
        self._count = count
        end_ns = bench.START_NS + (span_s + 3600) * 10**9
        self._range = {"start": str(bench.START_NS), "end": str(end_ns)}

    def scan(self) -> dict:
        """Find all needles by a text that the filter cannot know."""
        return self._needles("zebra crossing")

    def probe(self) -> dict:
        """Find all needles by their rare id."""
        return self._needles(bench.needle_id(self._kind))

    def _needles(self, text: str, operator: str = "|=") -> dict:
        found = self._tenant.get(
            "/api/v1/query", query=f'{{}} {operator} "{text}"', limit=100, **self._range
        )
        if len(found["records"]) != NEEDLES or found["stopped"]:
            raise RuntimeError(f"{text!r} found {found}")
        return found

    def pattern(self) -> dict:
        """Find all needles by a regular expression without a literal to look for first."""
        return self._needles("[a-z]ebra c[r]ossing", "|~")

    def histogram(self) -> dict:
        """Count all records per level and minute."""
        found = self._tenant.get("/api/v1/histogram", query="{}", step="60s", **self._range)
        total = sum(sum(one["counts"]) for one in found["series"])
        if total != self._count:
            raise RuntimeError(f"the histogram counts {total} of {self._count} records")
        return found
