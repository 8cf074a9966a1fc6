"""`make bench-growth`: what it costs as work grows, and when idle; writes bench/out/growth.json.

Each axis changes one thing and leaves the rest as it is. Each step has a Logweir of its own, so
that peaks of memory are its own. --scale 0.05 is a look at whether it works.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bench
import corpus
import machine
import site_
from bench import Bench
from figures import number
from run import about, teller
from store_rows import NEEDLES, Asked

SCALES = {"full": 1.0, "quick": 0.05}
RECORDS = 2_000_000
STEADY_REQUESTS = 40
"""Requests of 1000 records a second, over all tenants: far from what the machine can do."""

Row = list[str]


class Growth:
    """A run over the axes: how much of the work, and how each step gets a Logweir."""

    def __init__(self, scale: float, load: Path, say: Callable[[str], None]) -> None:
        self.scale = scale
        self.say = say
        self._load = load
        self._base = int(RECORDS * scale)

    @contextlib.contextmanager
    def site(self) -> Iterator[Bench]:
        """A fresh Logweir, with a bench on it."""
        with site_.running() as site:
            yield Bench(site, bench.Size(self._base, 5, 0, 0), self._load, self.say)

    def lines(self) -> Iterator[bytes]:
        """The corpus *web*, once."""
        with corpus.ndjson("web", self._base, bench.START_NS).open("rb") as file:
            yield from file

    def bodies(self, run: Bench, count: int, batch: int = bench.BATCH) -> tuple[Path, int]:
        """A file of bodies with `count` records, and how many bodies these are."""
        path = run.folder / f"bodies-{count}-{batch}"
        lines = corpus.repeated(self.lines, count)
        return path, corpus.bodies(bench.with_needles(lines, count, "web", NEEDLES), batch, path)


def mib(count: float) -> str:
    return f"{count / 2**20:.0f}"


def records_axis(growth: Growth) -> Iterator[Row]:
    """0.5, 2 and 8 million records of one tenant, at the same density in time."""
    yield [
        *("records", "CPU s/M", "disk B/record", "needle, scan ms", "needle, filter ms"),
        *("histogram ms", "peak MiB: ingest", "collector", "query", "postgres (PSS)", "valkey"),
    ]
    for factor in (0.25, 1, 4):
        count = int(RECORDS * growth.scale * factor)
        with growth.site() as run:
            watch = machine.MemoryWatch(run.site.pids)
            bodies, requests = growth.bodies(run, count)
            tenant = run.tenant(is_read=True)
            cost = run.stored(tenant, bodies, requests, count)
            bodies.unlink()
            asked = Asked(tenant, "web", count, int(corpus.SPAN_S * max(1, factor)))
            times = [_median_ms(run, one) for one in (asked.scan, asked.probe, asked.histogram)]
            watch.close()
            peaks = [machine.peak_bytes(run.site.pids[n]) for n in ("ingest", "collector", "query")]
            yield [
                f"{count:,}",
                f"{cost.cpu_s / count * 1e6:.2f}",
                f"{tenant.disk_bytes() / count:.1f}",
                *map(number, times),
                *map(mib, peaks),
                mib(watch.peaks["postgres"]),
                mib(machine.peak_bytes(run.site.pids["valkey"])),
            ]


def _median_ms(run: Bench, ask: Callable[[], object]) -> float:
    """The median of five, after a warm-up."""
    ask()
    return statistics.median(run.timed(ask).wall_s for _ in range(5)) * 1000


def tenants_axis(growth: Growth) -> Iterator[Row]:
    """The same steady load, spread over 1, 10 and 50 tenants."""
    yield [
        *("tenants", "CPU s/M", "of it ingest", "collector", "valkey", "postgres"),
        *("records a segment", "disk B/record", "queryable p50 s", "p99 s"),
        *("PSS MiB: ingest", "collector", "postgres", "valkey"),
    ]
    seconds = max(5, int(25 * growth.scale))
    count = STEADY_REQUESTS * seconds * bench.BATCH
    for number_of in (1, 10, 50):
        with growth.site() as run:
            tenants = run.tenants([f"many-{at}" for at in range(number_of)], is_read=True)
            bodies, _ = growth.bodies(run, min(count, int(RECORDS * growth.scale)))
            yield [
                str(number_of),
                *_steady(run, tenants, bodies, count),
                *_queryable(run, tenants, bodies, max(20, int(200 * growth.scale))),
                *(
                    mib(machine.pss_bytes(run.site.pids)[name])
                    for name in ("ingest", "collector", "postgres", "valkey")
                ),
            ]


def _steady(run: Bench, tenants: list[site_.Tenant], bodies: Path, count: int) -> Row:
    """CPU per million records at the steady rate, and what the segments are like."""
    before = run.site.cpu()
    loader = run.loading(tenants, bodies, count // bench.BATCH, rate=STEADY_REQUESTS)
    loader.communicate()
    each = count // bench.BATCH // len(tenants) * bench.BATCH
    for one in tenants:
        one.wait_stored(each)
    time.sleep(1)
    cpu_s, used = run.site.used(before)
    stored = sum(one.stored() for one in tenants)
    segments = sum(run.site.value(f"select count(*) from {one.schema}.segments") for one in tenants)
    disk = sum(one.disk_bytes() for one in tenants)
    parts = (used.by_name[name] for name in ("ingest", "collector", "valkey", "postgres"))
    return [
        f"{cpu_s / stored * 1e6:.2f}",
        *(f"{part / stored * 1e6:.2f}" for part in parts),
        number(stored / segments),
        f"{disk / stored:.1f}",
    ]


def _queryable(run: Bench, tenants: list[site_.Tenant], bodies: Path, probes: int) -> Row:
    """From a request to its record in an answer, while the steady load goes on."""
    loader = run.loading(tenants, bodies, STEADY_REQUESTS * 600, rate=STEADY_REQUESTS)
    try:
        time.sleep(1)
        waits_s = bench.probe_waits_s([tenants[0], tenants[-1]], probes)
    finally:
        loader.kill()
        loader.communicate()
    return [f"{statistics.median(waits_s):.2f}", f"{bench.p99(waits_s):.2f}"]


def collectors_axis(growth: Growth) -> Iterator[Row]:
    """One collector, and two of the same binding, under as much load as ingest takes."""
    yield ["collectors", "committed records/s", "spread", "CPU s/M", "of it collectors"]
    count = int(1_000_000 * growth.scale)
    for number_of in (1, 2):
        with growth.site() as run, _more_collectors(run.site, number_of - 1):
            bodies, requests = growth.bodies(run, count)
            costs, collecting = [], []
            for _ in range(4):
                costs.append(run.stored(run.tenant(), bodies, requests, count))
                used = run.last_used.by_name.items()
                collecting.append(sum(s for name, s in used if name.startswith("collector")))
            rates = [count / one.wall_s for one in costs[1:]]
            yield [
                str(number_of),
                number(statistics.median(rates)),
                f"{number(min(rates))} to {number(max(rates))}",
                f"{statistics.median(one.cpu_s for one in costs[1:]) / count * 1e6:.2f}",
                f"{statistics.median(collecting[1:]) / count * 1e6:.2f}",
            ]


@contextlib.contextmanager
def _more_collectors(site: site_.Site, count: int) -> Iterator[None]:
    """Run further collectors beside that of `up`, with its binding and names of their own."""
    processes = []
    try:
        for at in range(1, count + 1):
            words = (
                *("run", "collector", "--binding", site.data / "bindings" / "collector.json"),
                *("--ops", f"127.0.0.1:{site_.free_port()}", "--consumer", f"collector-{at}"),
            )
            log = (site.folder / f"collector-{at}.log").open("wb")
            process = subprocess.Popen([site_.BIN / "logweir", *words], stdout=log, stderr=log)
            processes.append(process)
            site.pids[f"collector-{at}"] = process.pid
        yield
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def senders_axis(growth: Growth, batch: int) -> Iterator[Row]:
    """1 to 256 connections that send as fast as they are answered."""
    yield [
        *("senders", "accepted records/s", "spread", "p50 ms", "p99 ms", "CPU s/M"),
        "asked to wait (429, 503)",
    ]
    wanted = int((1000 if batch > 1 else 20_000) * growth.scale)
    with growth.site() as run:
        for senders in (1, 4, 16, 64, 256):
            requests = max(wanted, 4 * senders)
            different = min(requests, 400 if batch > 1 else 20_000)
            bodies, _ = growth.bodies(run, different * batch, batch)
            seen = [_burst(run, bodies, requests, batch, senders) for _ in range(4)][1:]
            bodies.unlink()
            rates = [one["rate"] for one in seen]
            yield [
                str(senders),
                number(statistics.median(rates)),
                f"{number(min(rates))} to {number(max(rates))}",
                *(
                    number(statistics.median(one[name] for one in seen))
                    for name in ("p50", "p99", "cpu")
                ),
                f"{statistics.median(one['refused'] for one in seen) / requests:.1%}",
            ]


def _burst(run: Bench, bodies: Path, requests: int, batch: int, senders: int) -> dict[str, float]:
    """Send as fast as possible; CPU counts until all is stored."""
    tenant, before = run.tenant(), run.site.cpu()
    seen = run.send(tenant, bodies, requests, senders)
    tenant.wait_stored(requests * batch)
    time.sleep(bench.SETTLE_S)
    cpu_s, _ = run.site.used(before)
    count = requests * batch
    refused = sum(times for status, times in seen["statuses"].items() if status[0] != "2")
    return {
        "rate": count / seen["seconds"],
        "cpu": cpu_s / count * 1e6,
        "refused": refused,
        **seen["latency_ms"],
    }


def idle_axis(growth: Growth) -> Iterator[Row]:
    """What stands still costs: with 1 tenant, and with 50."""
    seconds = max(8, int(30 * growth.scale))
    found = {}
    for number_of in (1, 50):
        with growth.site() as run:
            run.site.tenants([f"idle-{at}" for at in range(number_of)])
            time.sleep(max(5, 20 * growth.scale))
            found[number_of] = _idle(run.site, seconds)
    steps = list(found.values())
    yield [
        "process",
        *(f"{what}, {n} tenants" for what in ("CPU %", "PSS MiB", "files") for n in found),
    ]
    for name in steps[0]["cpu"]:
        yield [
            name,
            *(f"{one['cpu'][name]:.2f}" for one in steps),
            *(mib(one["pss"][name]) for one in steps),
            *(str(one["files"][name]) for one in steps),
        ]
    yield [
        "**all**",
        *(f"{sum(one['cpu'].values()):.2f}" for one in steps),
        *(mib(sum(one["pss"].values())) for one in steps),
        *(str(sum(one["files"].values())) for one in steps),
    ]
    for what in ("connections of PostgreSQL", "connections of Valkey"):
        counts = " / ".join(str(one[what]) for one in steps)
        yield [what, counts, *[""] * (3 * len(steps) - 1)]


def _idle(site: site_.Site, seconds: float) -> dict[str, Any]:
    """CPU in per cent of one processor over some seconds, memory, files and connections."""
    before, began_s = site.cpu(), time.monotonic()
    time.sleep(seconds)
    used, took_s = site.cpu().since(before), time.monotonic() - began_s
    clients = site.value(
        "select count(*) from pg_stat_activity"
        " where backend_type = 'client backend' and pid <> pg_backend_pid()"
    )
    return {
        "cpu": {name: s / took_s * 100 for name, s in used.by_name.items()},
        "pss": machine.pss_bytes(site.pids),
        "files": machine.open_files(site.pids),
        "connections of PostgreSQL": clients,
        "connections of Valkey": machine.connections(site.valkey_port),
    }


AXES: dict[str, tuple[str, Callable[[Growth], Iterator[Row]]]] = {
    "records": ("Records of one tenant", records_axis),
    "tenants": ("Tenants, the same 40,000 records/s spread over them", tenants_axis),
    "collectors": ("Collectors", collectors_axis),
    "senders": ("Senders, batches of 1000", lambda growth: senders_axis(growth, bench.BATCH)),
    "singles": ("Senders, single records", lambda growth: senders_axis(growth, 1)),
    "idle": ("Idle", idle_axis),
}


def main() -> int:
    """Run the axes; those that are not run keep what an earlier run found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(SCALES), default="full")
    parser.add_argument("--scale", type=float, help="how much of the full work")
    parser.add_argument("--axes", default=",".join(AXES))
    options = parser.parse_args()
    scale = options.scale or SCALES[options.size]
    say = teller()
    bench.OUT.mkdir(exist_ok=True)
    path = bench.OUT / "growth.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        growth = Growth(scale, bench.compiled_load(Path(folder)), say)
        for axis in options.axes.split(","):
            title, measure = AXES[axis]
            say(f"{axis}: {title}")
            noise, rows = machine.Noise(), []
            for row in measure(growth):
                rows.append(row)
                say("  " + " | ".join(row))
            noise.look()
            found[axis] = about(f"scale {scale:g}", noise) | {"title": title, "rows": rows}
            path.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
