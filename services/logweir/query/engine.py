"""What every query does with segments: which can hold a match, and which of their rows do.

    keys -> filters -> batches of heads -> label sets -> pieces of bodies -> hits() in threads
                                                                                |
                       search.py: the first of them -> records  +  count.py: how many of them

Segments come in the order of the query: newest first by their ends, or oldest first by their
beginnings. A `Run` carries one query's budget and figures, and whether its client is gone.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, TypeVar

import msgspec
import numpy as np

from logweir.backends.heads import Head
from logweir.backends.segments_reader import Keys, Range, Snapshot
from logweir.core import errors, scan, segment
from logweir.core import filter as segment_filter
from logweir.core.columns import Bools, Int64s
from logweir.core.record import Labels
from logweir.query.plan import Plan

PIECE_BYTES: Final = 2 << 20
"""Compressed columns that are fetched at once, unless one segment has more."""
PIECE_SEGMENTS: Final = 32
SCAN_THREADS: Final = min(4, os.cpu_count() or 1)
"""Of one query: to decompress holds no lock of Python."""
FIRST_HEADS: Final = 4
FIRST_PROBED: Final = 64
"""Filters that are asked at first: a block of each costs far less than a head."""
MAX_HEADS: Final = 256
MAX_HEADS_BYTES: Final = 2 << 20
"""Label sets and counts of the heads that are read at once, unless one segment has more."""
HARD_FACTOR: Final = 2
"""A page that cannot advance may take this much more than its budget of time, then it fails."""


Asked = TypeVar("Asked")
Found = TypeVar("Found")


class Stats(msgspec.Struct):
    """What a query took. `segments` in its range, `opened` of them for at least one column."""

    scanned_bytes: int = 0
    segments: int = 0
    opened: int = 0
    elapsed_ms: int = 0


class Budget(msgspec.Struct, frozen=True):
    """Bounds of one query."""

    time_s: float
    max_bytes: int


class CancelledQueryError(Exception):
    """The client is gone; nobody reads this."""


class Run:
    """One running query: its budget, its figures, and whether it was given up."""

    def __init__(self, budget: Budget, now_s: Callable[[], float] = time.monotonic) -> None:
        self.stats = Stats()
        self._budget = budget
        self._now_s = now_s
        self._started_s = now_s()
        self._counting = threading.Lock()
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Make the scanning thread stop at its next segment."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise when the query was given up."""
        if self._cancelled.is_set():
            raise CancelledQueryError

    def scanned(self, size_bytes: int, opened: int = 0) -> None:
        """Count decompressed bytes that were looked at, and segments; from any thread."""
        with self._counting:
            self.stats.scanned_bytes += size_bytes
            self.stats.opened += opened

    def spent(self) -> str | None:
        """Return which bound is reached: "time", "bytes" or None."""
        if self._elapsed_s() >= self._budget.time_s:
            return "time"
        return "bytes" if self.stats.scanned_bytes >= self._budget.max_bytes else None

    def check_hard(self) -> None:
        """Fail a query that has no page to give within a multiple of its time.

        Raises:
            OverBudgetError: the time is up.
        """
        if self._elapsed_s() >= self._budget.time_s * HARD_FACTOR:
            raise OverBudgetError(
                "The query took too long to come to its first records.",
                hint="Choose a shorter range, or name labels in the selector.",
            )

    def _elapsed_s(self) -> float:
        return self._now_s() - self._started_s

    def finish(self) -> Stats:
        """Return the figures."""
        self.stats.elapsed_ms = round(self._elapsed_s() * 1000)
        return self.stats


class OverBudgetError(errors.BadRequestError):
    """The budget ended before there was anything to answer."""

    code = "over_budget"


class Candidate(msgspec.Struct, frozen=True, eq=False):
    """A segment that may hold records of the query. `accepted` says which label sets match."""

    head: Head
    accepted: Bools
    low_ns: int
    high_ns: int

    @property
    def places(self) -> dict[str, segment.Place]:
        """Where its columns stand in the body."""
        return self.head.places

    def labels(self, label_set: int) -> Labels:
        """Return one of its label sets."""
        return self.head.table.of[int(self.head.label_ids[label_set])]

    def edge_ns(self, *, is_backward: bool) -> int:
        """Return the time of its best possible record."""
        if is_backward:
            return min(self.head.max_ts, self.high_ns - 1)
        return max(self.head.min_ts, self.low_ns)

    def range(self, first: str, last: str) -> Range:
        """Return where the columns from `first` to `last` stand."""
        begin, end = self.places[first], self.places[last]
        return Range(
            self.head.id, self.head.min_ts, begin.offset, end.offset + end.length - begin.offset
        )

    def cut(self, piece: bytes, first: str, names: Sequence[str]) -> dict[str, bytes]:
        """Return the bytes of columns out of a piece that begins with `first`."""
        base = self.places[first].offset
        return {
            name: piece[place.offset - base : place.offset - base + place.length]
            for name, place in ((name, self.places[name]) for name in names)
        }

    def numbers(self, name: str, raw: dict[str, bytes]) -> Int64s:
        """Return a column of numbers, shape (n,)."""
        return segment.column_numbers(self.places[name], raw[name], self.head.n)

    def texts(self, name: str, raw: dict[str, bytes], run: Run) -> scan.Texts:
        """Return a column of texts."""
        column = segment.column_text(self.places[name], raw[name], self.head.n)
        run.scanned(len(column))
        return scan.Texts(column, self.head.n)

    def rows(
        self, name: str, raw: dict[str, bytes], rows: Int64s, message: scan.Texts, run: Run
    ) -> list[bytes]:
        """Return the texts of some rows of a column, in the order of `rows`."""
        run.scanned(segment.content_bytes(self.places[name], raw[name]))
        return segment.column_rows(
            self.places[name], raw[name], self.head.n, rows.tolist(), message.column
        )


class Hits(msgspec.Struct, frozen=True, eq=False):
    """Rows of a segment that match, with their times and label sets; shape (h,) each.

    `rows` rise. `message` is the column where it was looked at.
    """

    candidate: Candidate
    rows: Int64s
    time_ns: Int64s
    label_set: Int64s
    message: scan.Texts | None = None

    def without_message(self) -> Hits:
        """Return the same without the column, which may take megabytes."""
        return msgspec.structs.replace(self, message=None)

    @property
    def first_unread(self) -> str:
        """The first of the columns that showing a record needs besides."""
        return "message" if self.message is None else "trace"

    def take(self, which: Bools) -> Hits:
        """Return the chosen ones."""
        return Hits(
            self.candidate,
            self.rows[which],
            self.time_ns[which],
            self.label_set[which],
            self.message,
        )


# ---- which segments -------------------------------------------------------------------------


def ordered(keys: Keys, plan: Plan) -> tuple[Keys, Int64s]:
    """Return the segments in the order of the query, with the edge of each; shape (m,)."""
    if plan.is_backward:
        edges = np.minimum(keys.max_ts, plan.high_ns - 1)
        order = np.lexsort((keys.id, edges))[::-1]
    else:
        edges = np.maximum(keys.min_ts, plan.window.start_ns)
        order = np.lexsort((keys.id, edges))
    return keys.take(order), edges[order]


async def candidates(snapshot: Snapshot, plan: Plan, keys: Keys) -> list[Candidate]:
    """Return those of these segments that may hold a match, in their order."""
    if plan.filter_keys:
        keys = await _probed(snapshot, plan, keys)
    heads = await snapshot.heads(keys) if len(keys) else []
    return [one for head in heads if (one := _candidate(plan, head)) is not None]


async def _probed(snapshot: Snapshot, plan: Plan, keys: Keys) -> Keys:
    """Leave out the segments whose filter does not have a key."""
    is_asked = (keys.filter_version == segment_filter.VERSION) & (keys.filter_bytes > 0)
    probes = [
        (at, key, segment_filter.block_offset(key, int(keys.filter_bytes[at])))
        for at in np.flatnonzero(is_asked).tolist()
        for key in plan.filter_keys
    ]
    blocks = await snapshot.filter_blocks(
        [
            Range(int(keys.id[at]), int(keys.min_ts[at]), offset, segment_filter.BLOCK_BYTES)
            for at, _, offset in probes
        ]
    )
    may_hold = np.ones(len(keys), np.bool_)
    for (at, key, _), block in zip(probes, blocks, strict=True):
        if not segment_filter.block_has(block, key):
            may_hold[at] = False
    return keys.take(np.flatnonzero(may_hold))


def _candidate(plan: Plan, head: Head) -> Candidate | None:
    accepted = plan.accepts_all(head.pipeline, head.table, head.label_ids)
    if not accepted.any():
        return None
    return Candidate(
        head=head,
        accepted=accepted,
        low_ns=max(plan.lows_ns[head.pipeline], plan.window.start_ns),
        high_ns=plan.high_ns,
    )


async def batches(
    snapshot: Snapshot, plan: Plan, keys: Keys
) -> AsyncIterator[tuple[int, list[Candidate]]]:
    """Yield (place of the batch's first segment in `keys`, candidates); batches grow."""
    at, size = 0, FIRST_PROBED if plan.filter_keys else FIRST_HEADS
    while at < len(keys):
        heads_bytes = np.cumsum(keys.head_bytes[at : at + size])
        fitting = int(np.searchsorted(heads_bytes, MAX_HEADS_BYTES, side="right"))
        end = at + max(1, min(fitting, len(heads_bytes)))
        batch = keys.take(np.arange(at, end))
        yield at, await candidates(snapshot, plan, batch)
        at, size = end, min(size * 2, MAX_HEADS)


def pieces(found: Sequence[Candidate], first: str, last: str) -> list[list[Candidate]]:
    """Cut candidates into groups whose columns are fetched at once; groups grow from one."""
    groups: list[list[Candidate]] = []
    size_bytes, most = 0, 0
    for one in found:
        length = one.range(first, last).length
        if not groups or len(groups[-1]) >= most or size_bytes + length > PIECE_BYTES:
            groups.append([])
            size_bytes, most = 0, min(PIECE_SEGMENTS, max(1, most * 2))
        groups[-1].append(one)
        size_bytes += length
    return groups


async def in_threads(
    work: Callable[[Asked, bytes], Found], asked: Sequence[Asked], read: Sequence[bytes]
) -> list[Found]:
    """Return what the work makes of each piece that was read and what is asked of it, in order."""
    pairs = list(zip(asked, read, strict=True))
    share = -(-len(pairs) // SCAN_THREADS) or 1

    def some(start: int) -> list[Found]:
        return [work(*pair) for pair in pairs[start : start + share]]

    parts = [asyncio.to_thread(some, start) for start in range(0, len(pairs), share)]
    return [one for part in await asyncio.gather(*parts) for one in part]


# ---- matching rows --------------------------------------------------------------------------


def hits(plan: Plan, one: Candidate, piece: bytes, run: Run) -> Hits:
    """Return the rows of a segment that match, but for the cursor. Runs in a thread.

    `piece` holds the columns from "time" to `plan.last_column`.
    """
    run.check()
    names = ["time", "label_set"] + (["message"] if plan.lines else [])
    raw = one.cut(piece, "time", names)
    time_ns, label_set = one.numbers("time", raw), one.numbers("label_set", raw)
    run.scanned(time_ns.nbytes, opened=1)
    message = None
    keep = one.accepted[label_set] & (time_ns >= one.low_ns) & (time_ns < one.high_ns)
    if plan.lines and keep.any():
        message = one.texts("message", raw, run)
        for line in plan.lines:
            run.check()
            keep = line.keep(message, keep)
    rows = np.flatnonzero(keep)
    return Hits(one, rows, time_ns[rows], label_set[rows], message)
