"""Label sets by number, so that what is decided about one is decided once. Pure.

label sets of many segments -> LabelTable.ids() -> int64 numbers -> arrays of what is known
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Final

import numpy as np

from logweir.core.columns import Int64s
from logweir.core.record import Labels

_SET_BYTES: Final = 200
_PAIR_BYTES: Final = 170
"""What Python takes for a label set in a list and a dictionary, and for each pair in it."""


class LabelTable:
    """Each label set that was seen, once; its number is its place in `of`.

    One thread at a time may call `ids`; `of` may be read by any.
    """

    def __init__(self) -> None:
        self.of: list[Labels] = []
        self.size_bytes = 0
        self._ids: dict[Labels, int] = {}

    def __len__(self) -> int:
        return len(self.of)

    def ids(self, label_sets: Sequence[Labels]) -> Int64s:
        """Return the number of each, shape (n,); what is new gets the next one."""
        found = np.empty(len(label_sets), np.int64)
        for place, labels in enumerate(label_sets):
            known = self._ids.get(labels)
            if known is None:
                known = self._ids[labels] = len(self.of)
                self.of.append(labels)
                texts = sum(len(name) + len(value) for name, value in labels)
                self.size_bytes += _SET_BYTES + _PAIR_BYTES * len(labels) + texts
            found[place] = known
        return found


class Marks:
    """What is known of the label sets of some tables: a small number each, -1 for not yet."""

    def __init__(self) -> None:
        # A table that everybody else gave up is not kept for this.
        self._of: weakref.WeakKeyDictionary[LabelTable, Int64s] = weakref.WeakKeyDictionary()

    def unknown(self, table: LabelTable, ids: Int64s) -> list[int]:
        """Return those of these numbers that nothing is known of, each once."""
        marks = self._of.get(table)
        if marks is None or len(marks) < len(table):
            grown = np.full(len(table), -1, np.int64)
            if marks is not None:
                grown[: len(marks)] = marks
            marks = self._of[table] = grown
        found: list[int] = np.unique(ids[marks[ids] < 0]).tolist()
        return found

    def set(self, table: LabelTable, one: int, mark: int) -> None:
        """Know this of a label set, of which `unknown` was asked before."""
        self._of[table][one] = mark

    def get(self, table: LabelTable, ids: Int64s) -> Int64s:
        """Return the marks of these, shape of `ids`."""
        return self._of[table][ids]
