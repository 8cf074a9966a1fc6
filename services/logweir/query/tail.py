"""One live tail: the last lines, then live ones, each exactly once. Pure but for its event.

    journal and store --history()--> the last lines            --> frames() --> WebSocket
    hub.py --offer(pipeline, columns)--> bounded queue, gaps   -->

A tail is offered blocks from the moment that it is attached, before its history is read; so what
the history has already shown is left out of what waits in the queue. A client that reads too
slowly loses the newest records, and is told how many; nothing ever waits for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec
import numpy as np

from logweir.core import columns, scan
from logweir.core.columns import Bools, Columns, Int64s
from logweir.core.names import PipelineId
from logweir.core.record import Record, RecordId
from logweir.query import render
from logweir.query.plan import Plan
from logweir.runtime import metrics

QUEUE_RECORDS: Final = 10_000
"""Records that wait for a client; a person reads none of them any more."""

QUEUE_BYTES: Final = 32 << 20
"""Bytes of the blocks that those records stand in."""

FRAME_RECORDS: Final = 500
FRAME_BYTES: Final = 1 << 20

LIVE_FRAME: Final = b'{"live":true}'
"""Ends the history: all that follows was appended after the tail began."""


class _Waiting(msgspec.Struct, frozen=True, eq=False):
    pipeline: PipelineId
    records: Columns
    rows: Int64s


class Tail:
    """What one client sees. `plan` is of the query, its end does not matter."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._queue: deque[_Waiting | int] = deque()
        self._queued_records = 0
        self._queued_bytes = 0
        self._filled = asyncio.Event()
        self._history: list[Record] = []
        self._old_blocks: frozenset[int] = frozenset()
        self._shown: frozenset[tuple[int, int]] = frozenset()

    def offer(self, pipeline: PipelineId, records: Columns) -> None:
        """Take the records of a block that match; what finds no room becomes a gap."""
        rows = matching_rows(self.plan, pipeline, records)
        if not len(rows):
            return
        room = QUEUE_RECORDS - self._queued_records
        if self._queued_bytes + records.text_bytes > QUEUE_BYTES and self._queue:
            room = 0
        if room > 0:
            self._queue.append(_Waiting(pipeline, records, rows[:room]))
            self._queued_records += min(len(rows), room)
            self._queued_bytes += records.text_bytes
        missed = len(rows) - max(0, room)
        if missed > 0:
            metrics.TAIL_GAP_RECORDS.inc(missed)
            last = self._queue.pop() if self._queue and isinstance(self._queue[-1], int) else 0
            self._queue.append(missed + (last if isinstance(last, int) else 0))
        self._filled.set()

    def begin(
        self, buffered: Sequence[tuple[PipelineId, Columns]], stored: Sequence[Record], limit: int
    ) -> None:
        """Set the history: the last `limit` of what the journal and the store had.

        Args:
            buffered: blocks of the journal, read after the tail was attached, before the store.
            stored: the newest records of the store that match.
            limit: records of the history.
        """
        found = {record.id: record for record in stored}
        for pipeline, block in buffered:
            rows = matching_rows(self.plan, pipeline, block)
            found |= {one.id: one for one in records_of(self.plan, pipeline, block, rows)}
        self._history = [found[one] for one in sorted(found)][-limit:] if limit else []
        self._old_blocks = frozenset(int(block.block[0]) for _, block in buffered if block.n)
        self._shown = frozenset((one.id.block, one.id.index) for one in stored)

    async def frames(self) -> AsyncIterator[bytes]:
        """Yield JSON frames for ever: records, then LIVE_FRAME, then records and gaps."""
        for frame in _frames(self._history):
            yield frame
        self._history = []
        yield LIVE_FRAME
        while True:
            await self._filled.wait()
            while self._queue:
                for frame in self._next():
                    yield frame
            self._filled.clear()

    def _next(self) -> list[bytes]:
        one = self._queue.popleft()
        if isinstance(one, int):
            return [msgspec.json.encode({"gap": {"records": one}})]
        self._queued_records -= len(one.rows)
        self._queued_bytes -= one.records.text_bytes
        rows = one.rows[self._is_new(one.records, one.rows)]
        return _frames(records_of(self.plan, one.pipeline, one.records, rows))

    def _is_new(self, records: Columns, rows: Int64s) -> Bools:
        """Which of the rows the history has not covered, shape (len(rows),)."""
        places = zip(records.block[rows].tolist(), records.index[rows].tolist(), strict=True)
        return np.fromiter(
            (
                block not in self._old_blocks and (block, index) not in self._shown
                for block, index in places
            ),
            np.bool_,
            len(rows),
        )


def matching_rows(plan: Plan, pipeline: PipelineId, records: Columns) -> Int64s:
    """Return which records match the query and are within its beginning and the retention."""
    low_ns = plan.lows_ns.get(pipeline)
    if low_ns is None or not records.n:
        return np.zeros(0, np.int64)
    accepted = np.fromiter(
        (plan.accepts(pipeline, labels) for labels in records.label_sets),
        np.bool_,
        len(records.label_sets),
    )
    keep: Bools = accepted[records.label_set] & (records.time_ns >= low_ns)
    if plan.lines and keep.any():
        texts = scan.Texts(records.message, records.n)
        for line in plan.lines:
            keep = line.keep(texts, keep)
    return np.flatnonzero(keep)


def records_of(plan: Plan, pipeline: PipelineId, records: Columns, rows: Int64s) -> list[Record]:
    """Return some rows as whole records."""
    if not len(rows):
        return []
    texts = {name: scan.Texts(getattr(records, name), records.n) for name in columns.TEXTS}
    return [
        Record(
            id=RecordId(
                int(records.time_ns[row]), int(records.block[row]), int(records.index[row])
            ),
            labels=plan.shown(pipeline, records.label_sets[int(records.label_set[row])]),
            message=texts["message"].text(row).decode(),
            trace_id=texts["trace"].text(row).decode(),
            span_id=texts["span"].text(row).decode(),
            attributes=texts["attributes"].text(row),
            flags=int(records.flags[row]),
            extra=texts["extra"].text(row),
        )
        for row in rows.tolist()
    ]


def _frames(records: Sequence[Record]) -> list[bytes]:
    """Return `{"records": [...]}` frames of bounded size."""
    frames: list[list[bytes]] = []
    size_bytes = 0
    for record in records:
        text = render.record_json(record)
        if not frames or len(frames[-1]) >= FRAME_RECORDS or size_bytes > FRAME_BYTES:
            frames.append([])
            size_bytes = 0
        frames[-1].append(text)
        size_bytes += len(text)
    return [b'{"records":[' + b",".join(frame) + b"]}" for frame in frames]
