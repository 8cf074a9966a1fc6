"""`make bench`: runs every row, prints the table, writes bench/results.json and bench/out/rows.json.

SIZE=quick takes under 3 minutes, SIZE=full (default) some 15.
"""

from __future__ import annotations

import argparse
import datetime
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench
import corpus
import figures
import machine
import noise_rows
import rows
import site_
import store_rows

PARTS: dict[str, Callable[[bench.Bench], None]] = {
    "ingest": rows.ingest_rows,
    "single": rows.single_row,
    "store": lambda run: [store_rows.store_rows(run, kind) for kind in corpus.KINDS],
    "tail": rows.tail_row,
    "queryable": rows.queryable_row,
    "noise": noise_rows.noise_rows,
}


def teller() -> Callable[[str], None]:
    """What prints a line for a person, with the seconds since the start."""
    began_s = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began_s:6.1f} s] {text}", file=sys.stderr, flush=True)

    return say


def about(size: str, noise: machine.Noise) -> dict[str, Any]:
    """The circumstances of a run."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": machine.commit(bench.HERE.parent),
        "machine": machine.describe(),
        "servers": machine.servers(),
        "size": size,
        "noise": noise.verdict(),
        "calm": noise.describe(),
    }


def memory(site: site_.Site, watch: machine.MemoryWatch) -> dict[str, Any]:
    """Peaks of each process in bytes: of resident memory, and sampled PSS of its family."""
    peaks = {
        name: {"resident": machine.peak_bytes(pid), "pss": watch.peaks[name]}
        for name, pid in site.pids.items()
    }
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**peaks, "benchmark": {"resident": own, "pss": 0}}


def main() -> int:
    """Run the benchmark; with --check the exit code says whether every row holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(bench.SIZES), default="full")
    parser.add_argument("--only", default="", help=f"some parts of: {', '.join(PARTS)}")
    parser.add_argument("--check", action="store_true", help="fail when a row falls short")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else list(PARTS)
    say = teller()
    for kind in corpus.KINDS:
        say(f"the corpus {kind}")
        corpus.ndjson(kind, bench.SIZES[options.size].records, bench.START_NS)
    with tempfile.TemporaryDirectory() as folder, site_.running() as site:
        load = bench.compiled_load(Path(folder))
        watch = machine.MemoryWatch(site.pids)
        run = bench.Bench(site, bench.SIZES[options.size], load, say)
        say(f"{machine.describe()}; {machine.commit(bench.HERE.parent)}. {run.noise.verdict()}")
        for part in chosen:
            PARTS[part](run)
            run.noise.look()
        watch.close()
        found = about(options.size, run.noise)
        found |= {"records": run.size.records, "memory": memory(site, watch)}
    report(found, run.figures)
    return int(options.check and not all(one.holds for one in run.figures))


def report(found: dict[str, Any], measured: list[figures.Figure]) -> None:
    """Print the table; write it for programs."""
    print("; ".join(f"{key} {found[key]}" for key in ("commit", "machine", "size", "calm")))
    if found["noise"]:
        print(found["noise"])
    print("\n" + figures.table(measured) + "\n")
    for name, peak in found["memory"].items():
        print(f"{name}: {peak['resident'] >> 20} MiB resident, {peak['pss'] >> 20} MiB PSS at most")
    bench.OUT.mkdir(exist_ok=True)
    (bench.HERE / "results.json").write_text(figures.results(measured))
    (bench.OUT / "rows.json").write_text(figures.whole(measured, found))


if __name__ == "__main__":
    sys.exit(main())
