"""`make bench-page`: docs/benchmarks.md from what `make bench` and `make bench-growth` found.

bench/page.md (fixed text) + bench/out/{rows,growth}.json + bench/reasons.toml -> the page
"""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import bench
import figures
from figures import Figure


def header(about: dict[str, Any]) -> str:
    """The circumstances of the run."""
    noise = f"\n\n**{about['noise']}**: the figures below are not to be quoted." * bool(
        about["noise"]
    )
    return (
        f"Measured on {about['date']} at commit `{about['commit']}`, `SIZE={about['size']}`:"
        f" {about['machine']}; {about['servers']}. The machine: {about['calm']}.{noise}"
    )


def reasons(measured: list[Figure], known: dict[str, str]) -> str:
    """Why rows fall short, one line each."""
    short = [one for one in measured if not one.holds]
    if not short:
        return "All rows hold."
    lines = (
        f"- *{one.row}* ({one.corpus}, {figures.number(one.ratio)} for"
        f" {one.hold:g}): {known.get(one.key, 'not explained yet.')}"
        for one in short
    )
    return "Rows that fall short, and why:\n\n" + "\n".join(lines)


def notes(measured: list[Figure]) -> str:
    """What else was seen in the rows' runs."""
    lines = (f"- *{one.row}* ({one.corpus}): {one.note}." for one in measured if one.note)
    return "Seen in the same run:\n\n" + "\n".join(lines)


def memory(peaks: dict[str, dict[str, int]]) -> str:
    """Peak memory of each process."""
    lines = ["| process | resident, MiB | PSS with descendants, MiB |", "|---|---|---|"]
    for name, one in peaks.items():
        pss = str(one["pss"] >> 20) if one["pss"] else "-"
        lines.append(f"| {name} | {one['resident'] >> 20} | {pss} |")
    return "\n".join(lines)


def growth(found: dict[str, Any], known: dict[str, str]) -> str:
    """The axes' tables, each with what a person says about it."""
    parts = []
    for axis, one in found.items():
        names, *rows = one["rows"]
        table = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
        table += [f"| {' | '.join(row)} |" for row in rows]
        noise = f" **{one['noise']}.**" if one["noise"] else ""
        made = f"Commit `{one['commit']}`, {one['date']}, {one['size']}.{noise}"
        words = known.get(axis) or "Not explained yet."
        parts.append("\n".join([f"### {one['title']}", "", *table, "", words.strip(), "", made]))
    return "\n\n".join(parts)


def main() -> None:
    """Write the page."""
    rows = json.loads((bench.OUT / "rows.json").read_text())
    axes = json.loads((bench.OUT / "growth.json").read_text())
    known = tomllib.loads((bench.HERE / "reasons.toml").read_text())
    measured = [Figure(**one) for one in rows["figures"]]
    text = (bench.HERE / "page.md").read_text()
    page = text.format(
        header=header(rows),
        repetitions=max(one.repetitions for one in measured),
        records=f"{rows['records']:,}",
        rows=figures.table(measured),
        reasons=reasons(measured, known["rows"]),
        notes=notes(measured),
        memory=memory(rows["memory"]),
        growth=growth(axes, known["growth"]),
    )
    Path(sys.argv[1]).write_text(page)


if __name__ == "__main__":
    main()
