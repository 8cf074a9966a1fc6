"""What a run found: figures of rows against their limits, as a table, and for programs.

Sample (value, limit; wall and CPU) a repetition -> figure() -> Figure -> table(), results()
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple


class Cost(NamedTuple):
    """What something took: seconds by the clock, and CPU seconds of all that worked for it."""

    wall_s: float
    cpu_s: float


class Goal(NamedTuple):
    """A row of DESIGN 10: its key, its words, and what its ratio should be."""

    key: str
    row: str
    unit: str
    hold: float
    aim: float
    is_larger_better: bool = False


class Figure(NamedTuple):
    """One row's result: the medians of its repetitions, and the spread of their ratios.

    `beside` is the same comparison by the other clock: CPU where the row is of wall time. A limit
    of 1 is that of rows whose goal is absolute.
    """

    key: str
    row: str
    corpus: str
    value: float
    unit: str
    limit: float
    ratio: float
    low: float
    high: float
    repetitions: int
    hold: float
    aim: float
    is_larger_better: bool = False
    beside: str = ""
    note: str = ""

    @property
    def holds(self) -> bool:
        return self.ratio >= self.hold if self.is_larger_better else self.ratio <= self.hold

    @property
    def aims(self) -> bool:
        return self.ratio >= self.aim if self.is_larger_better else self.ratio <= self.aim

    @property
    def verdict(self) -> str:
        if not self.holds:
            return "**falls short**"
        return "reaches the aim" if self.aims else "holds"


Pairs = Sequence[tuple[float, float]]


def figure(goal: Goal, corpus: str, pairs: Pairs, *, beside: str = "", note: str = "") -> Figure:
    """Return the figure of (value, limit) pairs, one a repetition."""
    ratios = [value / limit for value, limit in pairs]
    return Figure(
        goal.key,
        goal.row,
        corpus,
        statistics.median(value for value, _ in pairs),
        goal.unit,
        statistics.median(limit for _, limit in pairs),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        len(pairs),
        goal.hold,
        goal.aim,
        goal.is_larger_better,
        beside,
        note,
    )


def other_clock(name: str, unit: str, pairs: Pairs) -> str:
    """Return the same comparison by another clock, in words."""
    value = statistics.median(value for value, _ in pairs)
    limit = statistics.median(limit for _, limit in pairs)
    ratio = statistics.median(value / max(limit, 1e-9) for value, limit in pairs)
    return f"{name} {value:,.3g} ÷ {limit:,.3g} {unit} = {ratio:.3g}"


def number(value: float) -> str:
    """A figure as a person reads it: three digits that matter."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(found: Sequence[Figure]) -> str:
    """The figures as a table in Markdown."""
    lines = [
        "| what | corpus | measured | limit | ratio (spread) | beside it | hold | aim | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        sign = "≥" if one.is_larger_better else "≤"
        limit = "-" if one.limit == 1 else number(one.limit)
        lines.append(
            f"| {one.row} | {one.corpus} | {number(one.value)} {one.unit} | {limit} |"
            f" **{number(one.ratio)}** ({number(one.low)} to {number(one.high)}) |"
            f" {one.beside or '-'} |"
            f" {sign} {one.hold:g} | {sign} {one.aim:g} | {one.verdict} |"
        )
    return "\n".join(lines)


def results(found: Sequence[Figure]) -> str:
    """The figures for programs, as DESIGN 9 has them."""
    keys = ("row", "corpus", "value", "unit", "limit", "ratio", "hold", "aim")
    return json.dumps([{key: getattr(one, key) for key in keys} for one in found], indent=2) + "\n"


def whole(found: Sequence[Figure], about: dict[str, Any]) -> str:
    """All that is known of a run, for the page in docs."""
    return json.dumps({**about, "figures": [one._asdict() for one in found]}, indent=1) + "\n"
