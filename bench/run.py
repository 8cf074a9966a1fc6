"""`make bench`: runs every row, prints the table, writes bench/results.json.

SIZE=quick takes under 3 minutes, SIZE=full (default) some 25.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import rows
import site_

HERE = Path(__file__).parent
QUIET = 0.85
"""A machine of which less is idle before the run is too noisy for its figures to be quoted."""


def compiled_load(folder: Path) -> Path:
    """The load generator, compiled by the machine's C compiler."""
    program = folder / "load"
    subprocess.run(["cc", "-O2", "-o", program, HERE / "load.c"], check=True)
    return program


def table(figures: list[rows.Figure]) -> str:
    """The figures as a table in Markdown."""
    lines = [
        "| what | corpus | measured | limit | ratio (spread) | hold | aim | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in figures:
        sign = "≥" if one.is_larger_better else "≤"
        lines.append(
            f"| {one.row} | {one.corpus} | {one.value:,.4g} {one.unit} | {one.limit:,.4g} |"
            f" **{one.ratio:.3g}** ({one.low:.3g} to {one.high:.3g}) |"
            f" {sign} {one.hold:g} | {sign} {one.aim:g} | {'holds' if one.holds else 'falls short'} |"
        )
    return "\n".join(lines)


def results(figures: list[rows.Figure]) -> str:
    """The figures for programs."""
    keys = ("row", "corpus", "value", "unit", "limit", "ratio", "hold", "aim")
    return json.dumps([{key: getattr(one, key) for key in keys} for one in figures], indent=2)


def main() -> int:
    """Run the benchmark; the exit code says whether every row holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=sorted(rows.SIZES), default="full")
    parser.add_argument("--only", default="", help="names of parts: ingest, single, store, live")
    options = parser.parse_args()
    began_s = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began_s:6.1f} s] {text}", file=sys.stderr, flush=True)

    idle = machine.idle_share()
    noise = "" if idle >= QUIET else f" TOO NOISY: only {idle:.0%} of it was idle before the run."
    say(f"{machine.describe()}; commit {machine.commit(HERE.parent)}.{noise}")
    with tempfile.TemporaryDirectory() as folder, site_.running() as site:
        bench = rows.Bench(site, rows.SIZES[options.size], compiled_load(Path(folder)), say)
        rows.run_all(bench, set(filter(None, options.only.split(","))))
        memory = rows.memory(bench)
    print(
        f"{machine.describe()}; commit {machine.commit(HERE.parent)}; SIZE={options.size}.{noise}\n"
    )
    print(table(bench.figures))
    print("\nPeak memory: " + ", ".join(f"{n} {b / 2**20:.0f} MiB" for n, b in memory.items()))
    (HERE / "results.json").write_text(results(bench.figures) + "\n")
    return 0 if all(one.holds for one in bench.figures) else 1


if __name__ == "__main__":
    sys.exit(main())
