"""Counts of records by bucket and group, folded from segments. Pure.

counts of a segment (per minute and label set)  --add_counts-->  Tally  --> series
rows that match (times and label sets)          --add_rows-->
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from logweir.core import beside, errors
from logweir.core.columns import Int64s
from logweir.core.record import Labels
from logweir.query.params import Buckets

MAX_CELLS: Final = 1_000_000
"""Buckets times groups; as numbers of an answer they take some 40 MB."""

MAX_GROUPS: Final = 100_000


class Tally:
    """Counts per bucket and group. `group` names the group of a label set of a pipeline."""

    def __init__(self, buckets: Buckets, group: Callable[[int, Labels], Labels]) -> None:
        self.buckets = buckets
        self._group = group
        self._places: dict[Labels, int] = {}
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

    def add_counts(
        self, pipeline: int, label_sets: Sequence[Labels], wanted: Int64s, counts: beside.Counts
    ) -> None:
        """Add a segment's counts.

        Args:
            pipeline: the segment's.
            label_sets: of the segment.
            wanted: 1 for label sets that count, 0 for others; shape (label sets,).
            counts: whole minutes, each within one bucket or within the range of a single one.
        """
        counted = wanted[counts.label_set] > 0
        self._add(
            pipeline,
            label_sets,
            counts.minute[counted] * beside.MINUTE_NS,
            counts.label_set[counted],
            counts.count[counted],
        )

    def add_rows(
        self, pipeline: int, label_sets: Sequence[Labels], time_ns: Int64s, label_set: Int64s
    ) -> None:
        """Add records, each one of them; shape (h,) each."""
        self._add(pipeline, label_sets, time_ns, label_set, np.ones(len(time_ns), np.int64))

    def _add(
        self,
        pipeline: int,
        label_sets: Sequence[Labels],
        time_ns: Int64s,
        label_set: Int64s,
        weight: Int64s,
    ) -> None:
        if not len(time_ns):
            return
        used = np.unique(label_set)
        place_of = np.zeros(len(label_sets), np.int64)
        for one in used.tolist():
            place_of[one] = self._place(self._group(pipeline, label_sets[one]))
        bucket = (time_ns - self.buckets.first_ns) // self.buckets.step_ns
        # A minute that a single bucket's range begins in begins before it.
        np.clip(bucket, 0, self.buckets.count - 1, out=bucket)
        np.add.at(self._counts, (place_of[label_set], bucket), weight)

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
