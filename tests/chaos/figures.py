"""The figures of a good run, where a document shows them: between two marks, made by machine.

`LOGWEIR_CHAOS_FIGURES` names the document; without it nothing is written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from chaos import growth, recovery, rounds
from chaos.growth import Sample
from chaos.rounds import Report

_MARKS = re.compile(r"(<!-- figures of a run -->\n).*(<!-- end of the figures -->\n)", re.DOTALL)
ROWS = ("requests", "retries", "repeats after an ack", "records stored", "records in quarantine")


def write(report: Report, samples: Mapping[str, Sequence[Sample]]) -> None:
    """Put the figures into the document, if one is named."""
    if name := os.environ.get("LOGWEIR_CHAOS_FIGURES"):
        path, text = Path(name), figures(report, samples)
        path.write_text(_MARKS.sub(lambda found: found[1] + text + found[2], path.read_text()))


def figures(report: Report, samples: Mapping[str, Sequence[Sample]]) -> str:
    """Return them as Markdown."""
    kinds, numbers = report.verdict.kinds, report.verdict.numbers
    first = [
        f"Seed {report.seed}, {rounds.machine()}; load {report.load_s:.0f} s,"
        f" drain {report.drain_s:.1f} s.",
        "",
        "| what | |",
        "|---|--:|",
        f"| records acknowledged | {report.acked:,} |",
        f"| faults | {len(report.done)} |",
        f"| lost / doubled / stuck | {kinds['lost']} / {kinds['doubled']} / {kinds['stuck']} |",
        f"| all other misses | {sum(kinds.values())} |",
        *(f"| {row} | {numbers[row]:,} |" for row in ROWS),
        "",
    ]
    return "\n".join([*first, *recovery.table(report.done), "", *growth.table(samples), ""])
