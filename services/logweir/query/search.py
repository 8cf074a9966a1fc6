"""The first records of a plan, in its order: one page of `/api/v1/query`.

    batches of candidates -> hits -> ids -> Best (limit + 1 of them) -> whole records

It ends when no segment that is left can hold a better record. A budget ends it earlier: what is
behind the first segment that was not read is then left to the next page, so no record is missed
and none comes twice, and each page gets further than the last.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np

from logweir.backends.segments_reader import Keys, Reader, Snapshot
from logweir.core import scan
from logweir.core.columns import Bools, Int64s
from logweir.core.record import Record, RecordId
from logweir.query import engine, render
from logweir.query.engine import Candidate, Hits, Run
from logweir.query.plan import Plan

MAX_ANSWER_BYTES: Final = 16 << 20
"""Texts of one page; with more of them the page ends early."""

_OTHER_TEXTS: Final = ("trace", "span", "attributes", "extra")

MAX_KEPT_BYTES: Final = 16 << 20
"""Message columns that are kept from matching to reading the records of a page."""


class Page(msgspec.Struct, frozen=True, eq=False):
    """A search's answer: records in order, where the next page begins, what ended this one."""

    records: list[Record]
    next: scan.Bound | None
    stopped: str | None


def _ids(found: Hits, piece: bytes, segment_at: int) -> scan.Ids:
    one = found.candidate
    raw = one.cut(piece, "block", ["block", "index"])
    return scan.Ids(
        time_ns=found.time_ns,
        block=one.numbers("block", raw).view(np.uint64)[found.rows],
        index=one.numbers("index", raw).astype(np.uint32)[found.rows],
        segment=np.full(len(found.rows), segment_at, np.int64),
        row=found.rows,
    )


# ---- search ---------------------------------------------------------------------------------


class _Search:
    """The state of one search: the best ids so far, and the segments that they stand in."""

    def __init__(self, plan: Plan, limit: int, run: Run) -> None:
        self.plan, self.run, self.limit = plan, run, limit
        # One more than the page holds: it tells whether there is a next page.
        self.best = scan.Best(limit + 1, is_backward=plan.is_backward)
        self.opened: list[Hits] = []
        self._kept_bytes = 0
        self._keeping = threading.Lock()

    def is_complete(self, edge_ns: int) -> bool:
        """Whether no segment from this edge on can hold a better record."""
        last_ns = self.best.edge_ns
        if last_ns is None:
            return False
        return edge_ns < last_ns if self.plan.is_backward else edge_ns > last_ns

    def stop(self, edge_ns: int) -> str | None:
        """Return what ends the page before a segment with this edge; None to go on."""
        self.run.check()
        reason = self.run.spent()
        if reason is None:
            return None
        if self.plan.advances(self.before(edge_ns)):
            return reason
        self.run.check_hard()
        return None

    def before(self, edge_ns: int) -> scan.Bound:
        """Return the bound that leaves all records from this edge on to the next page."""
        if self.plan.is_backward:
            return scan.Bound(RecordId(edge_ns + 1, 0, 0), is_backward=True)
        last = RecordId(edge_ns - 1, scan.MAX_BLOCK, scan.MAX_INDEX)
        return scan.Bound(last, is_backward=False)

    def matches(self, one: Candidate, piece: bytes) -> Hits | None:
        """Return what may enter the page of a segment. Runs in a thread."""
        all_hits = engine.hits(self.plan, one, piece, self.run)
        near = self.best.could_enter(all_hits.time_ns) & self._nearest(all_hits.time_ns)
        return self._bounded(all_hits.take(near)) if near.any() else None

    def _bounded(self, found: Hits) -> Hits:
        """Keep its message column as long as there is room for it."""
        size_bytes = found.message.size_bytes if found.message else 0
        with self._keeping:
            if self._kept_bytes + size_bytes > MAX_KEPT_BYTES:
                return found.without_message()
            self._kept_bytes += size_bytes
        return found

    def _nearest(self, time_ns: Int64s) -> Bools:
        """Which may be on this page for all that stands in the same segment."""
        near = np.ones(len(time_ns), np.bool_)
        # At the very time of the bound some lie before it: those do not count.
        behind = time_ns != self.plan.bound.id.time_ns
        near[behind] = scan.nearest(
            time_ns[behind], self.limit + 1, is_backward=self.plan.is_backward
        )
        return near

    def enter(self, found: Sequence[Hits], pieces: Sequence[bytes]) -> None:
        """Take these into the page. Runs in a thread."""
        for one, piece in zip(found, pieces, strict=True):
            ids = _ids(one, piece, len(self.opened))
            self.opened.append(one)
            ids = ids.take(self.plan.bound.after(ids))
            if len(ids):
                self.best.add(ids)


async def search(reader: Reader, plan: Plan, limit: int, run: Run) -> Page:
    """Return the first `limit` records of a plan.

    Raises:
        UnavailableError: the store does not answer.
        OverBudgetError: the budget ended before one segment was read.
        CancelledQueryError: the run was cancelled.
    """
    state = _Search(plan, limit, run)
    async with reader.snapshot() as snapshot:
        keys, edges = engine.ordered(await snapshot.keys(plan.lows_ns, plan.high_ns), plan)
        run.stats.segments = len(keys)
        stopped, bound = await _fill(snapshot, state, keys, edges)
        ids = state.best.ids
        if bound is not None:
            ids = ids.take(~bound.after(ids))
        is_more = len(ids) > limit
        ids = ids.take(np.arange(min(len(ids), limit)))
        records = await _records(snapshot, state, ids)
    if len(records) < len(ids):
        return Page(records, _behind(records[-1].id, plan), "bytes")
    if is_more:
        return Page(records, _behind(records[-1].id, plan), "limit")
    return Page(records, bound, stopped)


def _behind(last: RecordId, plan: Plan) -> scan.Bound:
    return scan.Bound(last, plan.is_backward)


async def _fill(
    snapshot: Snapshot, state: _Search, keys: Keys, edges: Int64s
) -> tuple[str | None, scan.Bound | None]:
    """Read segments until the page is full, complete, or out of budget: then says by what, and
    where the next page begins."""
    plan = state.plan
    async for at, found in engine.batches(snapshot, plan, keys):
        edge_ns = int(edges[at])
        for group in [None, *engine.pieces(found, "time", plan.last_column)]:
            if group is not None:
                edge_ns = group[0].edge_ns(is_backward=plan.is_backward)
            if state.is_complete(edge_ns):
                return None, None
            reason = state.stop(edge_ns)
            if reason is not None:
                return reason, state.before(edge_ns)
            if group is not None:
                await _read(snapshot, state, group)
    return None, None


async def _read(snapshot: Snapshot, state: _Search, group: Sequence[Candidate]) -> None:
    pieces = await snapshot.pieces([one.range("time", state.plan.last_column) for one in group])
    found = list(filter(None, await engine.in_threads(state.matches, group, pieces)))
    if found:
        pieces = await snapshot.pieces([hit.candidate.range("block", "index") for hit in found])
        await asyncio.to_thread(state.enter, found, pieces)


async def _records(snapshot: Snapshot, state: _Search, ids: scan.Ids) -> list[Record]:
    """Return whole records, as many of the first as fit into an answer; at least one."""
    found: dict[int, Record] = {}
    size_bytes, end = 0, len(ids)
    segments = list(dict.fromkeys(ids.segment.tolist()))
    left = iter(segments)
    for group in engine.pieces([state.opened[at].candidate for at in segments], "message", "extra"):
        state.run.check()
        these = list(itertools.islice(left, len(group)))
        pieces = await snapshot.pieces(
            [
                one.range(state.opened[at].first_unread, "extra")
                for one, at in zip(group, these, strict=True)
            ]
        )
        wanted = [np.flatnonzero(ids.segment[:end] == at) for at in these]
        read = await engine.in_threads(
            lambda places, piece: _read_records(state, piece, ids, places), wanted, pieces
        )
        for of_segment in read:
            more = {place: one for place, one in of_segment.items() if place < end}
            found |= more
            size_bytes += sum(map(render.size_bytes, more.values()))
            while size_bytes > MAX_ANSWER_BYTES and len(found) > 1:
                last = max(found)
                size_bytes -= render.size_bytes(found.pop(last))
                end = last
    return [found[place] for place in sorted(found) if place < end]


def _read_records(state: _Search, piece: bytes, ids: scan.Ids, wanted: Int64s) -> dict[int, Record]:
    """Records of one segment, by their places in `ids`. Runs in a thread."""
    if not len(wanted):
        return {}
    state.run.check()
    hit = state.opened[int(ids.segment[wanted[0]])]
    one, rows = hit.candidate, ids.row[wanted]
    raw = one.cut(piece, hit.first_unread, (hit.first_unread, *_OTHER_TEXTS, "flags"))
    message = hit.message or one.texts("message", raw, state.run)
    others = {name: one.rows(name, raw, rows, message, state.run) for name in _OTHER_TEXTS}
    flags = one.numbers("flags", raw)[rows]
    label_set = hit.label_set[np.searchsorted(hit.rows, rows)]
    return {
        place: Record(
            id=ids.id(place),
            labels=state.plan.shown(one.head.pipeline, one.labels(int(label_set[n]))),
            message=message.text(row).decode(),
            trace_id=others["trace"][n].decode(),
            span_id=others["span"][n].decode(),
            attributes=others["attributes"][n],
            flags=int(flags[n]),
            extra=others["extra"][n],
        )
        for n, (place, row) in enumerate(zip(wanted.tolist(), rows.tolist(), strict=True))
    }
