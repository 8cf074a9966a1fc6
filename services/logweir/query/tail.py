"""One live tail: the last lines, then live ones, each exactly once. Pure but for its event.

    history.py --begin(records)--> the last lines        --> frames() --> WebSocket
    hub.py     --offer(rows)-----> bounded queue, gaps   -->

A tail is offered blocks from the moment that it is attached, before its history is read; so what
the history shows is left out of what waits in the queue. A client that reads too slowly loses the
newest records, and is told how many; nothing ever waits for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec
import numpy as np

from logweir.core import errors
from logweir.core.columns import UInt32s
from logweir.core.record import Record
from logweir.query import render
from logweir.query.blocks import Rows
from logweir.query.plan import Plan
from logweir.runtime import metrics

QUEUE_RECORDS: Final = 10_000
"""Records that wait for a client; a person reads none of them any more."""

QUEUE_BYTES: Final = 16 << 20
"""Bytes of the blocks that those records stand in; a single block may have more."""

MISSED_RECORDS: Final = 1_000_000
"""Records without room before the history is known, whose places are kept: 4 bytes each."""

FRAME_RECORDS: Final = 500
FRAME_BYTES: Final = 256 << 10
"""A frame of several records: many clients take no message of more than 1 MiB."""

LIVE_FRAME: Final = b'{"live":true}'
"""Ends the history: all that follows was appended after the tail began, or just before."""


class Tail:
    """What one client sees. `plan` is of the query, its end does not matter."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._queue: deque[Rows | int] = deque()
        self._queued_records = 0
        self._queued_bytes = 0
        self._filled = asyncio.Event()
        self._history: Sequence[Record] = ()
        self._shown: dict[int, set[int]] | None = None
        self._missed_early: list[tuple[int, UInt32s]] = []
        self._missed_records = 0
        self._problem: errors.LogweirError | None = None

    def offer(self, found: Rows) -> None:
        """Take matching rows of one block; what finds no room becomes a gap."""
        found = self._new(found)
        if not len(found):
            return
        room = min(len(found), self._room(found))
        if room:
            self._queue.append(found.take(slice(room)))
            self._queued_records += room
            self._queued_bytes += found.block.text_bytes
        if room < len(found):
            self._miss(found.take(slice(room, None)))
        self._filled.set()

    def _room(self, found: Rows) -> int:
        """How many rows of this block may enter the queue."""
        if (self._shown is None and self._missed_records) or (
            self._queue and self._queued_bytes + found.block.text_bytes > QUEUE_BYTES
        ):
            return 0
        return max(0, QUEUE_RECORDS - self._queued_records)

    def _miss(self, found: Rows) -> None:
        if self._shown is None:
            # Some of them may stand in the history; how many are missed is known then. Of what
            # exceeds that as well only the number is kept.
            if self._missed_records < MISSED_RECORDS:
                block = int(found.block.block[found.rows[0]])
                self._missed_early.append((block, found.block.index[found.rows]))
            self._missed_records += len(found)
            return
        self._add_gap(len(found))

    def _add_gap(self, count: int) -> None:
        metrics.TAIL_GAP_RECORDS.inc(count)
        last = self._queue.pop() if self._queue and isinstance(self._queue[-1], int) else 0
        self._queue.append(count + (last if isinstance(last, int) else 0))
        self._filled.set()

    def _new(self, found: Rows) -> Rows:
        """Return the rows that the history has not shown."""
        if not self._shown or not len(found):
            return found
        shown = self._shown.get(int(found.block.block[found.rows[0]]))
        if not shown:
            return found
        return found.take(~np.isin(found.block.index[found.rows], list(shown)))

    def begin(self, history: Sequence[Record]) -> None:
        """Set the last lines, and leave them out of what was and will be offered."""
        self._history = history
        self._shown = {}
        for record in history:
            self._shown.setdefault(record.id.block, set()).add(record.id.index)
        waiting, missed = self._queue, self._missed_early
        self._queue, self._missed_early = deque(), []
        self._queued_records = self._queued_bytes = 0
        for one in waiting:
            if isinstance(one, Rows):
                self.offer(one)
        count = self._missed_records
        for block, index in missed:
            count -= int(np.isin(index, list(self._shown.get(block, ()))).sum())
        if count:
            self._add_gap(count)

    def fail(self, problem: errors.LogweirError) -> None:
        """End the tail, after what waits, with an error."""
        self._problem = problem
        self._filled.set()

    async def frames(self) -> AsyncIterator[bytes]:
        """Yield JSON frames for ever: records, then LIVE_FRAME, then records and gaps.

        Raises:
            LogweirError: what `fail` was called with.
        """
        for frame in await asyncio.to_thread(_frames, self._history):
            yield frame
        self._history = ()
        yield LIVE_FRAME
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._queue:
                one = self._queue.popleft()
                if isinstance(one, int):
                    yield msgspec.json.encode({"gap": {"records": one}})
                    continue
                self._queued_records -= len(one)
                self._queued_bytes -= one.block.text_bytes
                for start in range(0, len(one), FRAME_RECORDS):
                    part = one.take(slice(start, start + FRAME_RECORDS))
                    for frame in await asyncio.to_thread(self._frames, part):
                        yield frame
            if self._problem is not None:
                raise self._problem

    def _frames(self, part: Rows) -> list[bytes]:
        return _frames(part.records(self.plan))


def _frames(records: Sequence[Record]) -> list[bytes]:
    """Return `{"records": [...]}` frames of bounded size."""
    frames: list[list[bytes]] = []
    size_bytes = 0
    for record in records:
        text = render.record_json(record)
        if not frames or len(frames[-1]) >= FRAME_RECORDS or size_bytes + len(text) > FRAME_BYTES:
            frames.append([])
            size_bytes = 0
        frames[-1].append(text)
        size_bytes += len(text)
    return [b'{"records":[' + b",".join(frame) + b"]}" for frame in frames]
