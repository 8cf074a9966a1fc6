"""Hears the blocks of one tenant as they are appended, and offers them to all its live tails.

    journal_tail.Subscription -> Hub -> Tail.offer (each block once, whatever happens between)

Subscribe, renew the lease, read the journal, then the store: a block moves from the journal to the
store, so who reads in this order misses none (missed.py). The same is done when the numbers of the
channel show a gap, when its connection broke, or when the lease may have lapsed. A tail joins when
its pipelines are heard and reads its history only then: what it is not offered stands in that.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Set
from typing import Final, ParamSpec, TypeVar

from logweir.backends.journal_tail import LEASE_S, Published, Subscription, TailReader
from logweir.backends.segments_reader import Reader
from logweir.core import block, errors, ids
from logweir.core.names import PipelineId
from logweir.query import blocks
from logweir.query.missed import Make, Missed
from logweir.query.seam import Due, Line
from logweir.query.tail import Tail
from logweir.runtime import life

logger = logging.getLogger(__name__)

RENEW_S: Final = 10.0
LISTEN_S: Final = 0.1
"""How long a turn listens; also how soon a new tail's pipelines are subscribed to."""

IDLE_S: Final = 5.0
"""How long a pipeline without tails is heard, for a client that reconnects."""

ATTACH_S: Final = 10.0
BACKOFF_S: Final = 0.5
OVERLAP_MS: Final = 20_000
"""How far a gap is read before its beginning: clocks differ, and an append may take 5 s."""

SMALL_BYTES: Final = 32 << 10
"""Blocks up to this size are read at once; larger ones in a thread, as others wait."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Hub:
    """All live tails of one tenant."""

    def __init__(
        self, source: TailReader, reader: Reader, now_s: Callable[[], float] = time.time
    ) -> None:
        self._source = source
        self._reader = reader
        self._now_s = now_s
        self._joining: set[Tail] = set()
        self._tails: set[Tail] = set()
        self._lines: dict[PipelineId, Line] = {}
        self._heard: set[PipelineId] = set()
        self._changed = asyncio.Condition()
        self._problem: errors.LogweirError | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def is_running(self) -> bool:
        """Whether the hub listens."""
        return self._task is not None and not self._task.done()

    async def attach(self, tail: Tail) -> None:
        """Offer the tail all that is appended from now on; returns once that is sure.

        Raises:
            UnavailableError: the journal or the store does not answer.
        """
        wanted = tail.plan.lows_ns.keys()
        self._joining.add(tail)
        try:
            if not self.is_running and not self._is_closed:
                self._task = asyncio.create_task(self._run(), name="tail hub")
            async with asyncio.timeout(ATTACH_S), self._changed:
                await self._changed.wait_for(lambda: wanted <= self._heard or self._is_closed)
            if self._is_closed:
                raise _closed()
            self._tails.add(tail)
        except TimeoutError as cause:
            raise self._problem or errors.UnavailableError(
                "The live tail did not begin in time."
            ) from cause
        finally:
            self._joining.discard(tail)

    def detach(self, tail: Tail) -> None:
        """Offer the tail nothing more."""
        self._tails.discard(tail)

    def move(self, source: TailReader, reader: Reader) -> None:
        """Listen and read with other logins from now on; no tail ends, or misses a block."""
        self._source, self._reader = source, reader

    async def close(self) -> None:
        """End the hub, and all tails with an error that makes their clients come again."""
        self._is_closed = True
        for tail in self._tails:
            tail.fail(_closed())
        if self._task is not None:
            await life.end(self._task)
        await self._tell()
        await self._source.close()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # ---- listening -----------------------------------------------------------------------------

    async def _run(self) -> None:
        while self._is_needed():
            try:
                await self._listen()
            except errors.LogweirError as error:
                if self._problem is None:
                    logger.warning("tails interrupted", extra={"why": str(error)})
                self._problem = error
                await asyncio.sleep(BACKOFF_S)
            except Exception:
                logger.exception("tails interrupted")
                self._problem = errors.UnavailableError(
                    "The live tail failed; the reason is in the role's log."
                )
                await asyncio.sleep(BACKOFF_S)

    def _is_needed(self) -> bool:
        """Forget pipelines that no tail has wanted for a while; whether any are left."""
        now_s = time.monotonic()
        wanted = self._wanted()
        for pipeline, line in list(self._lines.items()):
            if pipeline in wanted:
                line.wanted_s = now_s
            elif now_s - line.wanted_s >= IDLE_S:
                del self._lines[pipeline]
                self._heard.discard(pipeline)
        return bool(self._tails or self._joining or self._lines)

    def _wanted(self) -> Set[PipelineId]:
        return {one for tail in self._tails | self._joining for one in tail.plan.lows_ns}

    async def _listen(self) -> None:
        """Hear what is appended, until nobody listens any more, the journal is lost, or there are
        other logins."""
        source = self._source
        subscription = source.subscription()
        try:
            while self._is_needed() and self._source is source:
                await self._subscribe(subscription)
                for pipeline in subscription.pipelines:
                    await self._renew(pipeline, self._lines[pipeline])
                if not subscription.pipelines:
                    await asyncio.sleep(LISTEN_S)
                    continue
                found = await subscription.next(LISTEN_S)
                if found is not None:
                    await self._hear(found)
                self._settle(is_idle=found is None)
        finally:
            self._heard.clear()
            await subscription.close()

    async def _subscribe(self, subscription: Subscription) -> None:
        """Subscribe to what is wanted, and to nothing that was forgotten."""
        forgotten = set(subscription.pipelines) - self._lines.keys()
        if forgotten:
            await subscription.remove(sorted(forgotten))
        fresh = self._wanted() - set(subscription.pipelines)
        if not fresh:
            return
        await subscription.add(sorted(fresh))
        for pipeline in sorted(fresh):
            await self._catch_up(pipeline, self._line(pipeline))
        if self._problem is not None:
            logger.info("tails go on")
            self._problem = None

    def _line(self, pipeline: PipelineId) -> Line:
        return self._lines.setdefault(pipeline, Line(time.monotonic()))

    async def _renew(self, pipeline: PipelineId, line: Line) -> None:
        now_s = time.monotonic()
        if now_s - line.renewed_s < RENEW_S:
            return
        if now_s - line.renewed_s >= LEASE_S - 1:
            await self._catch_up(pipeline, line)
            return
        now_ms = self._now_ms()
        line.renewed(Due(await self._source.renew(pipeline), now_ms, now_s))

    def _now_ms(self) -> int:
        return int(self._now_s() * 1000)

    def _settle(self, *, is_idle: bool) -> None:
        """Note how far is heard; what the journal counted must arrive.

        Raises:
            UnavailableError: blocks were appended and not heard.
        """
        now_s = time.monotonic()
        for line in self._lines.values():
            if not line.settle(now_s, is_idle=is_idle):
                raise errors.UnavailableError("What the journal publishes does not arrive.")

    async def _hear(self, found: Published) -> None:
        line = self._lines.get(found.pipeline)
        if line is None:
            return
        if not line.is_next(found.sequence) and not _is_known(line, found):
            await self._catch_up(found.pipeline, line)
        line.hear(found.sequence)
        size_bytes = len(found.payload)
        records = await _work(size_bytes, blocks.decode, found.payload, found.repeats)
        if records is not None and records.n:
            short = int(records.block[0])
            await self._offer(found.pipeline, line, short, size_bytes, lambda: records)

    async def _offer(
        self, pipeline: PipelineId, line: Line, block: int, size_bytes: int, make: Make
    ) -> None:
        """Offer the records of one block, unless they were offered before."""
        if not line.is_new(block):
            return
        tails = list(self._tails)
        found = await _work(size_bytes, _matching, tails, pipeline, make)
        line.remember(block)
        for tail, rows in found:
            if tail in self._tails:
                tail.offer(rows)

    async def _catch_up(self, pipeline: PipelineId, line: Line) -> None:
        """Offer what was appended since the pipeline was last heard, and was not heard.

        The first time nothing is offered: what was there before is a history's to show.
        """
        self._heard.discard(pipeline)
        line.renewed_s, now_ms = time.monotonic(), self._now_ms()
        sequence = await self._source.renew(pipeline)
        missed = Missed(self._source, self._reader, pipeline, line.recent)
        if line.heard_ms is None:
            for one in await missed.blocks(now_ms - OVERLAP_MS):
                line.remember(one)
        else:
            await missed.read(
                line.heard_ms - OVERLAP_MS, functools.partial(self._offer, pipeline, line)
            )
        line.caught_up(sequence, now_ms)
        self._heard.add(pipeline)
        await self._tell()


async def _work(
    size_bytes: int, function: Callable[_P, _T], *args: _P.args, **options: _P.kwargs
) -> _T:
    """Call a function on a block of this size, without holding up others for long."""
    if size_bytes <= SMALL_BYTES:
        return function(*args, **options)
    return await asyncio.to_thread(function, *args, **options)


def _closed() -> errors.UnavailableError:
    return errors.UnavailableError(
        "The tenant's logins were changed.", hint="Open the live tail again."
    )


def _is_known(line: Line, found: Published) -> bool:
    """Whether a block was offered before it was heard."""
    with contextlib.suppress(errors.FormatError):
        return not line.is_new(ids.short(block.header(found.payload).uuid))
    return False


def _matching(
    tails: list[Tail], pipeline: PipelineId, make: Make
) -> list[tuple[Tail, blocks.Rows]]:
    """Return what each tail is to be offered of a block."""
    records = make()
    if records is None:
        return []
    found = []
    for tail in tails:
        rows = blocks.matching_rows(tail.plan, pipeline, records)
        if len(rows):
            found.append((tail, blocks.Rows(pipeline, records, rows).compact()))
    return found
