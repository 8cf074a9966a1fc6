"""Finds records in columns of one segment: by text, by time, by label set; and ranks them. Pure.

    message column -> Texts.containing / Texts.matching -> Bools, shape (n,)
    time, block, index, rows -> Ranked -> Best (the first k of any number of segments)

A text column is n texts joined by NUL. A literal holds no NUL, so it is looked for in the whole
column at once. A regular expression may cross the NUL (`.` or a negated class takes it), and
knows the edges of a text only when it sees that text alone; `is_edge_blind` says when looking
over the whole column finds the same records.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cached_property
from typing import Final, Protocol

import msgspec
import numpy as np

from logweir.core import columns
from logweir.core.columns import Bools, Int64s, UInt32s, UInt64s
from logweir.core.record import RecordId

MAX_BLOCK: Final = (1 << 64) - 1
MAX_INDEX: Final = (1 << 32) - 1
_SPARSE: Final = 16
"""Below one candidate in so many records each one is looked at alone."""
_PIECE_BYTES: Final = 4 << 10
"""Texts that a regular expression runs over at once. For each match `a.*b` runs on to the end of
what it is given: of a whole column, all matches together would take the square of its size."""


class Match(Protocol):
    """Where a regular expression matched."""

    def start(self) -> int:
        """Return the first byte of the match."""


class Pattern(Protocol):
    """A compiled regular expression over bytes, with RE2's promise of linear time."""

    def search(
        self, text: bytes, pos: int | None = None, endpos: int | None = None
    ) -> Match | None:
        """Return the leftmost match in [`pos`, `endpos`)."""


class Texts:
    """One text column of n records, searched in ways that stay within each text."""

    def __init__(self, column: bytes, n: int) -> None:
        self.n = n
        self.column = column

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory, with the places of its texts."""
        return len(self.column) + 16 * self.n

    @cached_property
    def ends(self) -> Int64s:
        """Where each text ends, shape (n,)."""
        return columns.ends(self.column, self.n)

    @cached_property
    def starts(self) -> Int64s:
        """Where each text begins, shape (n,)."""
        if not self.column:
            return np.zeros(self.n, np.int64)
        return np.concatenate([np.zeros(1, np.int64), self.ends[:-1] + 1])

    def text(self, row: int) -> bytes:
        """Return one text."""
        return self.column[int(self.starts[row]) : int(self.ends[row])]

    def containing(self, literal: bytes, among: Bools) -> Bools:
        """Return which records of `among` contain the literal, shape (n,)."""
        if not literal:
            return among
        found = np.zeros(self.n, np.bool_)
        if not self.column or columns.SEPARATOR in literal or not among.any():
            return found
        if np.count_nonzero(among) * _SPARSE < self.n:
            rows = np.flatnonzero(among)
            bounds = zip(
                rows.tolist(), self.starts[rows].tolist(), self.ends[rows].tolist(), strict=True
            )
            column = self.column
            found[[row for row, low, high in bounds if column.find(literal, low, high) >= 0]] = True
            return found
        places = self._places(literal)
        if places:
            found[np.searchsorted(self.ends, places)] = True
        return found & among

    def _places(self, literal: bytes) -> list[int]:
        """Where the literal stands, once a text."""
        find = self.column.find
        places = []
        at = find(literal)
        while at >= 0:
            places.append(at)
            nul = find(columns.SEPARATOR, at)
            if nul < 0:
                break
            at = find(literal, nul + 1)
        return places

    def matching(self, pattern: Pattern, among: Bools, *, edge_blind: bool) -> Bools:
        """Return which records of `among` match the expression somewhere, shape (n,).

        Args:
            pattern: searched in each text as if it stood alone.
            among: the records that matter, shape (n,).
            edge_blind: what `is_edge_blind` says of the expression.
        """
        found = np.zeros(self.n, np.bool_)
        rows = np.flatnonzero(among)
        if not self.column:
            if len(rows) and pattern.search(b""):
                found[rows] = True
        elif edge_blind and len(rows) * _SPARSE >= self.n:
            found[self._search_pieces(pattern)] = True
            found &= among
        else:
            found[self._search_each(pattern, rows)] = True
        return found

    def _search_each(self, pattern: Pattern, rows: Int64s) -> list[int]:
        """Those of these rows whose text has a match."""
        search, column = pattern.search, self.column
        bounds = zip(
            rows.tolist(), self.starts[rows].tolist(), self.ends[rows].tolist(), strict=True
        )
        return [row for row, low, high in bounds if search(column[low:high])]

    def _search_pieces(self, pattern: Pattern) -> list[int]:
        """Rows with a match. A match in a piece of the column may leave its text, so it says only
        that no text before it has one; from there on each text of the piece is searched alone."""
        column, ends = self.column, self.ends.tolist()
        rows = []
        at = 0
        while at <= len(column):
            last = min(bisect_left(ends, at + _PIECE_BYTES), self.n - 1)
            match = pattern.search(column, at, ends[last])
            if match is not None:
                first = bisect_left(ends, match.start())
                rows += self._search_each(pattern, np.arange(first, last + 1))
            at = ends[last] + 1
        return rows


def is_edge_blind(pattern: str) -> bool:
    """Whether a regular expression sees no difference between a text's edge and a NUL.

    True when it has no `^`, `$`, `\\A`, `\\z` outside of escapes (word boundaries are the same at
    both: NUL is no part of a word). When in doubt the answer is no.
    """
    if r"\Q" in pattern:
        return False
    at, before = 0, ""
    while at < len(pattern):
        part = pattern[at : at + 2] if pattern[at] == "\\" else pattern[at]
        if part in ("$", r"\A", r"\z", r"\Z") or (part == "^" and before != "["):
            return False
        at, before = at + len(part), part
    return True


class Bound(msgspec.Struct, frozen=True):
    """Where a page begins: behind this id, in the direction of the query; exclusive."""

    id: RecordId
    is_backward: bool

    def after(self, ids: Ids) -> Bools:
        """Return which ids lie behind the bound, shape (n,)."""
        time_ns, block, index = ids.time_ns, ids.block, ids.index
        same_time: Bools = time_ns == self.id.time_ns
        same_block: Bools = block == np.uint64(self.id.block)
        if self.is_backward:
            less: Bools = (block < np.uint64(self.id.block)) | (
                same_block & (index < self.id.index)
            )
            return (time_ns < self.id.time_ns) | (same_time & less)
        more: Bools = (block > np.uint64(self.id.block)) | (same_block & (index > self.id.index))
        return (time_ns > self.id.time_ns) | (same_time & more)


class Ids(msgspec.Struct, frozen=True, eq=False):
    """Ids of n records, and where these stand: row `row` of segment `segment`; shape (n,) each."""

    time_ns: Int64s
    block: UInt64s
    index: UInt32s
    segment: Int64s
    row: Int64s

    def __len__(self) -> int:
        return len(self.time_ns)

    def take(self, which: Int64s | Bools) -> Ids:
        """Return the chosen ones, in the order of `which`."""
        return Ids(
            self.time_ns[which],
            self.block[which],
            self.index[which],
            self.segment[which],
            self.row[which],
        )

    def id(self, at: int) -> RecordId:
        """Return one of them."""
        return RecordId(int(self.time_ns[at]), int(self.block[at]), int(self.index[at]))


def no_ids() -> Ids:
    """Return none."""
    none = np.zeros(0, np.int64)
    return Ids(none, none.view(np.uint64), none.astype(np.uint32), none, none)


class Best:
    """The first `count` of all records that were added, in the order of a query."""

    def __init__(self, count: int, *, is_backward: bool) -> None:
        self._count = count
        self._is_backward = is_backward
        self.ids = no_ids()

    def could_enter(self, time_ns: Int64s) -> Bools:
        """Return which records may still be among the first, by their times alone."""
        edge = self.edge_ns
        if edge is None:
            return np.ones(len(time_ns), np.bool_)
        return time_ns >= edge if self._is_backward else time_ns <= edge

    @property
    def edge_ns(self) -> int | None:
        """The time of the last one when there are `count`; None before."""
        return int(self.ids.time_ns[-1]) if len(self.ids) >= self._count else None

    def add(self, more: Ids) -> None:
        """Take these in."""
        both = Ids(
            *(
                np.concatenate([getattr(self.ids, name), getattr(more, name)])
                for name in Ids.__struct_fields__
            )
        )
        order = np.lexsort((both.index, both.block, both.time_ns))
        if self._is_backward:
            order = order[::-1]
        self.ids = both.take(order[: self._count])


def nearest(time_ns: Int64s, count: int, *, is_backward: bool) -> Bools:
    """Return which of these may be among the first `count`, by time: those and all equal ones."""
    if len(time_ns) <= count:
        return np.ones(len(time_ns), np.bool_)
    if is_backward:
        edge_ns = int(np.partition(time_ns, len(time_ns) - count)[len(time_ns) - count])
        return time_ns >= edge_ns
    edge_ns = int(np.partition(time_ns, count - 1)[count - 1])
    return time_ns <= edge_ns
