"""What a query will read and keep, decided before anything is read. Pure.

    LogQL text, window, grant -> plan() -> Plan -> engine.py (segments), tail.py (live blocks)

A plan knows which pipelines and times matter, which label sets match, what must be in a segment's
filter, and which lines stay. A label that a record does not have counts as empty; the reserved
label `pipeline` is the name of the pipeline that a record came in by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import numpy as np

from logweir.core import filter as segment_filter
from logweir.core import moments, scan
from logweir.core.access import Pipeline
from logweir.core.columns import Bools, Int64s
from logweir.core.labels import LabelTable, Marks
from logweir.core.logql import parser, tree
from logweir.core.names import PipelineId
from logweir.core.record import Labels, RecordId
from logweir.query.params import Window

PIPELINE_LABEL: Final = "pipeline"
MAX_FILTER_KEYS: Final = 8
"""Keys that a filter is asked for; more of them hide hardly any further segment."""

_MAX_CACHED_LABEL_SETS: Final = 10_000

Test = Callable[[str], bool]


class Line:
    """One line filter, ready to run over a column of messages."""

    def __init__(self, node: tree.LineFilter) -> None:
        self._node = node
        self._literals = [value.encode() for value in node.values if not node.is_regex]
        self._patterns = [
            (parser.compile_regex(value, anchored=False), scan.is_edge_blind(value))
            for value in node.values
            if node.is_regex
        ]

    def keep(self, texts: scan.Texts, among: Bools) -> Bools:
        """Return which records of `among` stay, shape (n,)."""
        found = among & False
        for literal in self._literals:
            found |= texts.containing(literal, among & ~found)
        for pattern, edge_blind in self._patterns:
            found |= texts.matching(pattern, among & ~found, edge_blind=edge_blind)
        return among & ~found if self._node.is_negated else found

    def filter_keys(self) -> list[int]:
        """Return keys that a segment's filter must have for any of its records to stay."""
        if self._node.is_negated or len(self._literals) != 1:
            return []
        return segment_filter.literal_keys(self._literals[0])


class Plan(msgspec.Struct, frozen=True, eq=False):
    """A query over some pipelines. Times are nanoseconds; `bound` is where its page begins.

    `lows_ns` are the pipelines to read, each with its first moment (the retention hides older
    records), `high_ns` is exclusive.
    """

    query: tree.Query
    window: Window
    bound: scan.Bound
    lows_ns: Mapping[PipelineId, int]
    high_ns: int
    pipeline_names: Mapping[PipelineId, str]
    lines: tuple[Line, ...]
    filter_keys: tuple[int, ...]
    tests: tuple[tuple[str, Test], ...]
    _accepted: dict[Labels, bool] = {}
    _marks: Marks = msgspec.field(default_factory=Marks)

    @property
    def is_backward(self) -> bool:
        """Whether the newest records come first."""
        return self.bound.is_backward

    @property
    def last_column(self) -> str:
        """The last of the columns, from "time" on, that decide which rows match."""
        return "message" if self.lines else "label_set"

    def accepts(self, pipeline: PipelineId, labels: Labels) -> bool:
        """Whether records of a pipeline with these labels match the selector."""
        if pipeline not in self.lows_ns:
            return False
        known = self._accepted.get(labels)
        if known is None:
            values = dict(labels)
            known = all(test(values.get(name, "")) for name, test in self.tests)
            if len(self._accepted) < _MAX_CACHED_LABEL_SETS:
                self._accepted[labels] = known
        return known

    def accepts_all(self, pipeline: PipelineId, table: LabelTable, ids: Int64s) -> Bools:
        """Return which label sets of a table match the selector, shape of `ids`."""
        if not self.tests:
            return np.full(len(ids), pipeline in self.lows_ns)
        if pipeline not in self.lows_ns:
            return np.zeros(len(ids), np.bool_)
        for one in self._marks.unknown(table, ids):
            self._marks.set(table, one, self.accepts(pipeline, table.of[one]))
        return self._marks.get(table, ids) > 0

    def advances(self, bound: scan.Bound) -> bool:
        """Whether a page that begins at `bound` is further than this one."""
        if self.is_backward:
            return bound.id < self.bound.id
        return bound.id > self.bound.id

    def shown(self, pipeline: PipelineId, labels: Labels) -> Labels:
        """Return a record's labels as answers show them: with the name of its pipeline."""
        name = self.pipeline_names.get(pipeline, "")
        return tuple(sorted((*labels, (PIPELINE_LABEL, name)))) if name else labels


def plan(
    text: str,
    window: Window,
    pipelines: Mapping[PipelineId, Pipeline],
    now_ns: int,
    *,
    is_backward: bool = True,
    bound: scan.Bound | None = None,
) -> Plan:
    """Return the plan of a query.

    Args:
        text: LogQL.
        window: the range that was asked for.
        pipelines: those that the credential permits.
        now_ns: for the retention.
        is_backward: newest first; not looked at when there is a `bound`.
        bound: where to go on, from a cursor.

    Raises:
        QueryError: the text is no query.
    """
    query = parser.parse(text)
    start = bound or first_bound(window, is_backward=is_backward)
    of_pipeline = [_test(one) for one in query.matchers if one.name == PIPELINE_LABEL]
    chosen = [one for one in pipelines.values() if all(test(one.name) for test in of_pipeline)]
    lines = tuple(Line(one) for one in query.filters)
    keys = dict.fromkeys(key for line in lines for key in line.filter_keys())
    low_ns = window.start_ns if start.is_backward else max(window.start_ns, start.id.time_ns)
    return Plan(
        query=query,
        window=window,
        bound=start,
        lows_ns={
            one.id: max(low_ns, now_ns - one.retention_days * moments.NS_PER_DAY) for one in chosen
        },
        high_ns=min(window.end_ns, start.id.time_ns + 1) if start.is_backward else window.end_ns,
        pipeline_names={one.id: one.name for one in chosen},
        lines=lines,
        filter_keys=tuple(list(keys)[:MAX_FILTER_KEYS]),
        tests=tuple((m.name, _test(m)) for m in query.matchers if m.name != PIPELINE_LABEL),
        _accepted={},
        _marks=Marks(),
    )


def first_bound(window: Window, *, is_backward: bool) -> scan.Bound:
    """Return the bound before which nothing of the range lies."""
    if is_backward:
        return scan.Bound(RecordId(window.end_ns, 0, 0), is_backward=True)
    last = RecordId(window.start_ns - 1, scan.MAX_BLOCK, scan.MAX_INDEX)
    return scan.Bound(last, is_backward=False)


def _test(matcher: tree.Matcher) -> Test:
    """Return the condition as a function of the label's value."""
    value = matcher.value
    if matcher.operator == "=":
        return lambda found: found == value
    if matcher.operator == "!=":
        return lambda found: found != value
    pattern = parser.compile_regex(value, anchored=True)
    if matcher.operator == "=~":
        return lambda found: pattern.search(found.encode()) is not None
    return lambda found: pattern.search(found.encode()) is None
