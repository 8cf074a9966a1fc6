"""Where records come from, and the label sets that these sources stand for. No I/O.

service, level, host, labels of a record -> Sources -> the number of a label set
"""

from __future__ import annotations

from typing import Any, Final

from logweir.core import bounds
from logweir.core.record import Labels
from logweir.ingest import fields

MAX_SOURCES: Final = 8192
"""Sources that are remembered before all of them are forgotten."""

Source = tuple[Any, ...]
"""Service, level and host as they were sent, and labels as pairs where there are any."""


class Sources(dict[Source, int]):
    """Numbers of label sets by where they come from. Nearly all records share a few sources, so
    these are looked at once, and not once a request. What a source may have in bytes is bounded
    by what labels may have; all are forgotten when there are too many."""

    def __init__(self) -> None:
        self.label_sets: list[Labels] = []
        self._numbers: dict[Labels, int] = {}

    def __missing__(self, source: Source) -> int:
        service, level, host, *more = source
        labels = fields.labels_of(service, level, host, dict(more[0]) if more else {})
        number = self._numbers.setdefault(labels, len(self.label_sets))
        if number == len(self.label_sets):
            self.label_sets.append(labels)
        if len(level) <= bounds.MAX_LABEL_VALUE_BYTES:  # of any length: it is only normalised
            self[source] = number
        return number

    def make_room(self) -> None:
        """Forget all when it is too much."""
        if max(len(self), len(self.label_sets)) > MAX_SOURCES:
            self.clear()
            self.label_sets.clear()
            self._numbers.clear()
