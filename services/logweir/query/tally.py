"""Counts of records by bucket and group, folded from segments. Pure.

counts of a segment (per minute and label set)  --add_counts-->  Tally  --> series
rows that match (times and label sets)          --add_rows-->
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import numpy as np

from logweir.core import beside, errors
from logweir.core.columns import Bools, Int64s
from logweir.core.labels import LabelTable, Marks
from logweir.core.names import PipelineId
from logweir.core.record import Labels
from logweir.query.params import Buckets

MAX_CELLS: Final = 1_000_000
"""Buckets times groups; as numbers of an answer they take some 40 MB."""

MAX_GROUPS: Final = 100_000


class Source(Protocol):
    """Whose records are counted: `label_ids` are the numbers in `table` of its label sets."""

    @property
    def pipeline(self) -> PipelineId: ...  # noqa: D102
    @property
    def table(self) -> LabelTable: ...  # noqa: D102
    @property
    def label_ids(self) -> Int64s: ...  # noqa: D102


class Tally:
    """Counts per bucket and group. `group` names the group of a label set of a pipeline."""

    def __init__(self, buckets: Buckets, group: Callable[[int, Labels], Labels]) -> None:
        self.buckets = buckets
        self._group = group
        self._places: dict[Labels, int] = {}
        self._marks: dict[PipelineId, Marks] = {}
        self._counts = np.zeros((0, buckets.count), np.int64)

    def series(self) -> dict[Labels, Int64s]:
        """Return the counts of each group that was seen, shape (buckets,)."""
        return {group: self._counts[place] for group, place in self._places.items()}

    @property
    def is_by_minute(self) -> bool:
        """Whether every edge between buckets lies on a minute."""
        one = self.buckets.count == 1
        minute_ns = beside.MINUTE_NS
        return one or not (self.buckets.first_ns % minute_ns or self.buckets.step_ns % minute_ns)

    def add_counts(self, source: Source, wanted: Bools, counts: beside.Counts) -> None:
        """Add a segment's counts.

        Args:
            source: the segment.
            wanted: which of its label sets count; shape (label sets,).
            counts: whole minutes, each within one bucket or within the range of a single one.
        """
        counted = wanted[counts.label_set]
        self._add(
            source,
            counts.minute[counted] * beside.MINUTE_NS,
            counts.label_set[counted],
            counts.count[counted],
        )

    def add_rows(self, source: Source, time_ns: Int64s, label_set: Int64s) -> None:
        """Add records of a segment, each one of them; shape (h,) each."""
        self._add(source, time_ns, label_set, np.ones(len(time_ns), np.int64))

    def _add(self, source: Source, time_ns: Int64s, label_set: Int64s, weight: Int64s) -> None:
        if not len(time_ns):
            return
        bucket = (time_ns - self.buckets.first_ns) // self.buckets.step_ns
        # A minute that a single bucket's range begins in begins before it.
        np.clip(bucket, 0, self.buckets.count - 1, out=bucket)
        place = self._places_of(source, label_set)
        np.add.at(self._counts.reshape(-1), place * self.buckets.count + bucket, weight)

    def _places_of(self, source: Source, label_set: Int64s) -> Int64s:
        """The place of each record's group, shape of `label_set`."""
        pipeline, table, ids = source.pipeline, source.table, source.label_ids
        marks = self._marks.setdefault(pipeline, Marks())
        used = np.flatnonzero(np.bincount(label_set, minlength=len(ids)))
        for one in marks.unknown(table, ids[used]):
            marks.set(table, one, self._place(self._group(pipeline, table.of[one])))
        return marks.get(table, ids)[label_set]

    def _place(self, group: Labels) -> int:
        place = self._places.get(group)
        if place is not None:
            return place
        place = self._places[group] = len(self._places)
        if place >= len(self._counts):
            rows = max(4, 2 * len(self._counts))
            if place >= MAX_GROUPS or (place + 1) * self.buckets.count > MAX_CELLS:
                raise errors.BadRequestError(
                    f"There are more than {place} groups in {self.buckets.count} buckets.",
                    hint="Group by a label with fewer values, or count fewer buckets.",
                )
            rows = max(place + 1, min(rows, MAX_CELLS // self.buckets.count))
            grown = np.zeros((rows, self.buckets.count), np.int64)
            grown[: len(self._counts)] = self._counts
            self._counts = grown
        return place
