"""Draws docs/scaling.svg: what `scaling.decide` does with a load that grows, stops and comes back.

    python docs/scaling_picture.py          writes it
    python docs/scaling_picture.py --check  fails when it is not what it would be

The load is that of the worked example in docs/howto/scaling.md, in the simulation of the tests.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from logweir_operator import crdgen
from logweir_operator.model import Autoscaling

ROOT: Final = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from simulating import Moment, Pipeline  # noqa: E402 - found only by the path above

PATH: Final = ROOT / "docs" / "scaling.svg"
MB: Final = 1_000_000
GROWS_S, STOPS_S, RECORD_S, END_S = 300, 1200, 2101, 2700
CAPACITY: Final = 4 * MB
EACH_S: Final = 3
"""Between two points of a curve."""

WIDTH, LEFT, RIGHT = 900, 64, 20
ROW, GAP, TOP = 130, 46, 34
STYLE: Final = """\
text { font: 13px sans-serif; fill: #1f2328 } .small { font-size: 11px; fill: #59636e }
.back { fill: #ffffff } .grid { stroke: #d1d9e0 } .line { fill: none; stroke-width: 2 }
.load { stroke: #0969da } .area { stroke: none; fill: #0969da; opacity: .15 }
.backlog { stroke: #bc4c00 } .wanted { stroke: #1a7f37 } .ready { stroke: #8250df }
.ready { stroke-dasharray: 5 3 } .event { stroke: #59636e; stroke-dasharray: 2 4 }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } .small { fill: #9198a1 } .back { fill: #0d1117 } .grid { stroke: #3d444d }
.load { stroke: #4493f8 } .area { fill: #4493f8 } .backlog { stroke: #f0883e }
.wanted { stroke: #3fb950 } .ready { stroke: #ab7df8 } .event { stroke: #9198a1 }
}"""


class Row(msgspec.Struct, frozen=True):
    """A curve or two over time: `title`, class of the stroke and height of each, grid lines."""

    title: str
    curves: Sequence[tuple[str, Callable[[Moment], float]]]
    ticks: Sequence[int]


ROWS: Final = (
    Row("arrival, MB/s", [("load", lambda one: one.arrival / MB)], (0, 10, 20)),
    Row("backlog, MB", [("backlog", lambda one: one.backlog / MB)], (0, 200, 400, 600)),
    Row(
        "collectors: wanted (solid), ready (dashed)",
        [("wanted", lambda one: one.wanted), ("ready", lambda one: one.ready)],
        (0, 5, 10),
    ),
)
EVENTS: Final = ((GROWS_S, "tenfold load"), (STOPS_S, "load stops"), (RECORD_S, "one record"))


def simulated() -> Pipeline:
    """Return the pipeline of the picture, at its end."""

    def load(now_s: float) -> float:
        if now_s == RECORD_S:
            return 400.0
        return 2 * MB if now_s < GROWS_S else 20 * MB if now_s < STOPS_S else 0.0

    spec = Autoscaling(min_replicas=0)
    return Pipeline(spec, load=load, capacity=CAPACITY, noise=0.05).run(END_S)


def picture(moments: Sequence[Moment]) -> str:
    """Return the SVG."""
    height = TOP + len(ROWS) * (ROW + GAP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Arrival, backlog and collectors of a pipeline over 45 minutes</title>",
        f"<style>\n{STYLE}\n</style>",
        f'<rect class="back" width="{WIDTH}" height="{height}"/>',
    ]
    for number, row in enumerate(ROWS):
        lines += _row(row, TOP + number * (ROW + GAP), moments)
    bottom = height - GAP
    for at_s, text in EVENTS:
        x = _x(at_s)
        lines.append(f'<path class="event" d="M{x} {TOP - 6}V{bottom}"/>')
        lines.append(f'<text class="small" x="{x + 4}" y="{TOP - 8}">{text}</text>')
    for minute in range(0, END_S // 60 + 1, 5):
        lines.append(_text(_x(minute * 60), bottom + 18, f"{minute} min", "middle"))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _row(row: Row, top: int, moments: Sequence[Moment]) -> list[str]:
    largest = max([*row.ticks, *(height(one) for one in moments for _, height in row.curves)])

    def y(value: float) -> float:
        return round(top + ROW - value / largest * ROW, 1)

    lines = [f'<text x="{LEFT}" y="{top - 8}">{row.title}</text>']
    for tick in row.ticks:
        lines.append(f'<path class="grid" d="M{LEFT} {y(tick)}H{WIDTH - RIGHT}"/>')
        lines.append(_text(LEFT - 8, y(tick) + 4, str(tick), "end"))
    for name, height in row.curves:
        points = _steps([(_x(one.at_s), y(height(one))) for one in moments])
        lines.append(f'<path class="line {name}" d="{points}"/>')
        if name == "load":
            lines.append(f'<path class="area" d="{points}V{y(0)}H{LEFT}Z"/>')
    return lines


def _steps(points: Sequence[tuple[float, float]]) -> str:
    """A path with a corner where the height changes, and none where it does not."""
    first, *others = points
    path, level = f"M{first[0]} {first[1]}", first[1]
    for x, y in others:
        if y != level:
            path, level = f"{path}H{x}V{y}", y
    return f"{path}H{points[-1][0]}"


def _x(at_s: float) -> float:
    return round(LEFT + at_s / END_S * (WIDTH - LEFT - RIGHT), 1)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="small" x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'


if __name__ == "__main__":
    crdgen.write_or_check({PATH: picture(simulated().moments[::EACH_S])}, "the operator")
