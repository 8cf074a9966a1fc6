"""Hears the blocks of one tenant as they are appended, and offers them to all its live tails.

    journal_tail.Subscription -> Hub -> Tail.offer (each block once, whatever happens between)

Subscribe, renew the lease, read the journal, then the store: a block moves from the journal to the
store, so who reads in this order misses none. The same is done when the numbers of the channel
show a gap, when its connection broke, or when the lease may have lapsed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from logweir.backends.journal import Entry
from logweir.backends.journal_tail import LEASE_S, Published, Subscription, TailReader
from logweir.backends.segments_reader import Range, Reader
from logweir.core import block, columns, errors, ids, segment
from logweir.core.columns import Columns
from logweir.core.names import PipelineId
from logweir.query.tail import Tail

logger = logging.getLogger(__name__)

RENEW_S: Final = 10.0
LISTEN_S: Final = 0.2
"""How long a turn listens; also how soon a new tail's pipelines are subscribed to."""

IDLE_S: Final = 5.0
"""How long a hub without tails goes on, for a client that reconnects."""

BACKOFF_S: Final = 1.0
OVERLAP_MS: Final = 20_000
"""How far a gap is read before its beginning: clocks differ, and an append may take 5 s."""

RECENT_BLOCKS: Final = 50_000
"""Blocks that are remembered as offered; far more than `OVERLAP_MS` brings."""

JOURNAL_ENTRIES: Final = 512
JOURNAL_BYTES: Final = 64 << 20
"""How much of a journal is read for a gap or a history."""


class _Line:
    """What was heard of one pipeline. `heard_ms`: all appended before is in `recent` or older."""

    def __init__(self) -> None:
        self.sequence: int | None = None
        self.recent: dict[int, None] = {}
        self.heard_ms: int | None = None
        self.renewed_s = 0.0


class Hub:
    """All live tails of one tenant."""

    def __init__(
        self, source: TailReader, reader: Reader, now_s: Callable[[], float] = time.time
    ) -> None:
        self.source = source
        self._reader = reader
        self._now_s = now_s
        self._tails: set[Tail] = set()
        self._lines: dict[PipelineId, _Line] = {}
        self._heard: set[PipelineId] = set()
        self._changed = asyncio.Condition()
        self._problem: errors.LogweirError | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """Whether the hub listens."""
        return self._task is not None and not self._task.done()

    @property
    def tails(self) -> int:
        """How many tails are attached."""
        return len(self._tails)

    async def attach(self, tail: Tail, wait_s: float = 10.0) -> None:
        """Offer the tail all that is appended from now on; returns once that is sure.

        Raises:
            UnavailableError: the journal or the store does not answer.
        """
        self._tails.add(tail)
        if not self.is_running:
            self._problem = None
            self._task = asyncio.create_task(self._run(), name="tail hub")
        wanted = set(tail.plan.lows_ns)
        try:
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(lambda: wanted <= self._heard or self._problem)
        except TimeoutError as cause:
            self.detach(tail)
            raise errors.UnavailableError("The live tail did not begin in time.") from cause
        if self._problem is not None:
            self.detach(tail)
            raise self._problem

    def detach(self, tail: Tail) -> None:
        """Offer the tail nothing more."""
        self._tails.discard(tail)

    async def close(self) -> None:
        """End the hub."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.source.close()

    async def buffered(self, pipelines: Sequence[PipelineId]) -> list[tuple[PipelineId, Columns]]:
        """Return blocks that the journal holds, without what they repeat; for a history.

        Raises:
            UnavailableError: the journal did not answer.
        """
        found = []
        for pipeline in pipelines:
            for entry in await self.source.newest(pipeline, JOURNAL_ENTRIES, JOURNAL_BYTES):
                decoded = _decode(entry.payload, entry.repeats)
                if decoded is not None:
                    found.append((pipeline, decoded))
        return found

    async def _run(self) -> None:
        idle_since_s = time.monotonic()
        while self._tails or time.monotonic() - idle_since_s < IDLE_S:
            if self._tails:
                idle_since_s = time.monotonic()
            try:
                await self._listen()
            except errors.LogweirError as error:
                await self._tell(error)
                logger.warning("tail interrupted", extra={"why": str(error)})
                await asyncio.sleep(BACKOFF_S)
        self._lines.clear()

    async def _tell(self, problem: errors.LogweirError | None) -> None:
        async with self._changed:
            self._problem = problem
            self._changed.notify_all()

    async def _listen(self) -> None:
        """Hear what is appended, until nobody listens any more or the journal is lost."""
        subscription = self.source.subscription()
        self._heard.clear()
        for line in self._lines.values():
            line.sequence = None
        idle_since_s = time.monotonic()
        try:
            while self._tails or time.monotonic() - idle_since_s < IDLE_S:
                if self._tails:
                    idle_since_s = time.monotonic()
                await self._subscribe(subscription)
                await self._renew()
                if not self._heard:
                    await asyncio.sleep(LISTEN_S)
                elif (found := await subscription.next(LISTEN_S)) is not None:
                    await self._hear(found)
        finally:
            with contextlib.suppress(Exception):
                await subscription.close()

    async def _subscribe(self, subscription: Subscription) -> None:
        wanted = {one for tail in self._tails for one in tail.plan.lows_ns} - self._heard
        if wanted:
            await subscription.add(sorted(wanted))
            for pipeline in sorted(wanted):
                line = self._lines.setdefault(pipeline, _Line())
                await self.source.renew(pipeline)
                line.renewed_s = time.monotonic()
                await self._catch_up(pipeline, line)
        if wanted or self._problem is not None:
            self._heard |= wanted
            await self._tell(None)

    async def _renew(self) -> None:
        for pipeline in self._heard:
            line = self._lines[pipeline]
            age_s = time.monotonic() - line.renewed_s
            if age_s < RENEW_S:
                continue
            await self.source.renew(pipeline)
            line.renewed_s = time.monotonic()
            if age_s >= LEASE_S - 1:
                await self._catch_up(pipeline, line)
            else:
                line.heard_ms = self._now_ms()

    def _now_ms(self) -> int:
        return int(self._now_s() * 1000)

    async def _hear(self, found: Published) -> None:
        line = self._lines[found.pipeline]
        if line.sequence is not None and found.sequence != line.sequence + 1:
            await self._catch_up(found.pipeline, line)
        line.sequence = found.sequence
        line.heard_ms = self._now_ms()
        self._offer(found.pipeline, line, _decode(found.payload, found.repeats))

    def _offer(self, pipeline: PipelineId, line: _Line, records: Columns | None) -> None:
        """Offer the records of one block, unless they were offered before."""
        if records is None or not records.n or int(records.block[0]) in line.recent:
            return
        line.recent[int(records.block[0])] = None
        while len(line.recent) > RECENT_BLOCKS:
            del line.recent[next(iter(line.recent))]
        for tail in self._tails:
            tail.offer(pipeline, records)

    async def _catch_up(self, pipeline: PipelineId, line: _Line) -> None:
        """Offer what was appended since the pipeline was last heard, and was not heard.

        The first time nothing is offered: what was there before is a history's to show.
        """
        is_first = line.heard_ms is None
        now_ms = self._now_ms()
        since_ms = (now_ms if line.heard_ms is None else line.heard_ms) - OVERLAP_MS
        entries = await self.source.newest(pipeline, JOURNAL_ENTRIES, JOURNAL_BYTES)
        stored = await self._stored_since(pipeline, since_ms, line)
        found = [*map(_entry_columns, reversed(entries)), *stored]
        for records in found:
            if is_first and records is not None and records.n:
                line.recent[int(records.block[0])] = None
            else:
                self._offer(pipeline, line, records)
        line.heard_ms = now_ms

    async def _stored_since(
        self, pipeline: PipelineId, since_ms: int, line: _Line
    ) -> list[Columns]:
        """Return stored blocks that were appended since then and are not in `recent`."""
        parts = []
        async with self._reader.snapshot() as snapshot:
            keys = await snapshot.keys_created_since([pipeline], since_ms)
            for head in await snapshot.heads(keys):
                places = segment.places(head.layout, head.codec)
                size_bytes = sum(place.length for place in places.values())
                (body,) = await snapshot.pieces([Range(head.id, head.min_ts, 0, size_bytes)])
                raw = {n: body[p.offset : p.offset + p.length] for n, p in places.items()}
                labels = segment.label_sets(head.label_sets)
                found = segment.decode_columns(head.n, places, raw, labels)
                since = np.uint64(max(0, since_ms) << ids.SHORT_RANDOM_BITS)
                parts.append(columns.select(found, found.block >= since))
        return _by_block(parts, line)


def _by_block(parts: Sequence[Columns], line: _Line) -> list[Columns]:
    """Records of segments, gathered by the block that they came in; without recent ones."""
    parts = [part for part in parts if part.n]
    if not parts:
        return []
    whole = columns.concat(parts)
    blocks = [one for one in np.unique(whole.block).tolist() if one not in line.recent]
    return [columns.select(whole, whole.block == np.uint64(one)) for one in blocks]


def _entry_columns(entry: Entry) -> Columns | None:
    return _decode(entry.payload, entry.repeats)


def _decode(payload: bytes, repeats: frozenset[int]) -> Columns | None:
    """The records of a block without the requests that it repeats; None for what is no block."""
    try:
        header, records = block.decode(payload)
    except errors.FormatError:
        return None  # the collectors report it
    if not repeats:
        return records
    keep = np.ones(records.n, np.bool_)
    for index, where in enumerate(block.request_slices(header)):
        if index in repeats:
            keep[where] = False
    return columns.select(records, keep)
