"""Group commit: concurrent small requests of one pipeline share one block, so one fsync.

    submit() -> waiting -> (nothing in flight, large enough, or 10 ms) -> block -> append -> answers

A request is answered by what the journal says of it alone: stored, a repeat, or a conflict.
When nothing is in flight, or much waits, the next block goes at once; else it waits for company.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from logweir.backends import failpoint, journal
from logweir.core import block, bounds, errors, ids
from logweir.core.names import PipelineId, TenantId
from logweir.runtime import metrics

logger = logging.getLogger(__name__)

LINGER_S: Final = 0.010
"""The longest that a request waits for company."""

FULL_BYTES: Final = 1 << 18
"""A group this large goes at once: larger entries gain nothing more."""

MAX_BYTES: Final = 4 * bounds.MIB
"""The most that requests are joined to; a single larger request is a block of its own."""

MAX_IN_FLIGHT: Final = 8
"""Appends of one pipeline at a time; from 16 kB on the journal is fastest with several."""


class Outcome(msgspec.Struct, frozen=True):
    """What became of a request: its receipt (the first one's, for a repeat)."""

    receipt: ids.Receipt
    is_repeated: bool


class _Waiting(msgspec.Struct, eq=False):
    request: block.Request
    part: block.Part
    answer: asyncio.Future[Outcome]


class Group:
    """The requests of one pipeline on their way into its journal."""

    def __init__(
        self,
        tenant: TenantId,
        pipeline: PipelineId,
        appender: journal.Appender,
        *,
        now_s: Callable[[], float] = time.time,
        refused: Counter[str] | None = None,
    ) -> None:
        self._tenant = tenant
        self._pipeline = pipeline
        self._appender = appender
        self._now_s = now_s
        self._waiting: list[_Waiting] = []
        self._waiting_bytes = 0
        self._in_flight: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._due: asyncio.Handle | None = None
        self._refused: Counter[str] = Counter() if refused is None else refused
        self._problem = ""

    def refuse(self, reason: str, count: int = 1) -> None:
        """Count a refusal; it rides to the tenant's usage in the next block."""
        self._refused[reason] += count

    async def submit(self, request: block.Request, part: block.Part) -> Outcome:
        """Return when the request's records are in the journal.

        Raises:
            KeyConflictError: its key was used with another body.
            OverLimitError, TooLargeError, ForbiddenError, UnavailableError: as `Appender.append`.
        """
        waiting = _Waiting(request, part, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._waiting_bytes += request.size_bytes
        self._arm()
        return await waiting.answer

    def _arm(self, *, is_late: bool = False) -> None:
        """See to it that what waits goes: at the next turn of the loop, or after the linger.

        Neither is ever put off by who comes later.
        """
        loop = asyncio.get_running_loop()
        if is_late or not self._in_flight or self._waiting_bytes >= FULL_BYTES:
            if self._due is None:
                self._due = loop.call_soon(self._flush)
        elif self._timer is None:
            self._timer = loop.call_later(LINGER_S, self._flush)

    def _disarm(self) -> None:
        for handle in (self._timer, self._due):
            if handle is not None:
                handle.cancel()
        self._timer = self._due = None

    def _flush(self) -> None:
        self._disarm()
        if not self._waiting or len(self._in_flight) >= MAX_IN_FLIGHT:
            return  # the end of an append flushes again
        taken, self._waiting = take(self._waiting)
        self._waiting_bytes = sum(w.request.size_bytes for w in self._waiting)
        task = asyncio.create_task(self._append(taken), name="append")
        self._in_flight.add(task)
        task.add_done_callback(self._done)
        if self._waiting:
            self._arm()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        if self._waiting:
            self._arm(is_late=self._timer is None)  # it has lingered, and waits for this end

    async def _append(self, taken: list[_Waiting]) -> None:
        failure: errors.LogweirError = errors.UnavailableError("Ingest was stopped.")
        try:
            while taken:
                taken = await self._append_once(taken)
            self._problem = ""
        except errors.LogweirError as error:
            failure = error
            if isinstance(error, errors.UnavailableError):
                self._say(str(error))
        except Exception:
            logger.exception("append broke", extra=self._names())
            failure = errors.UnavailableError("Ingest failed on these records; it is in its log.")
        finally:
            for waiting in taken:
                _fail(waiting, failure)

    def _say(self, problem: str) -> None:
        """Log why the journal does not take blocks: once, not for each of them."""
        if problem != self._problem:
            logger.warning("append failed", extra=self._names() | {"problem": problem})
        self._problem = problem

    def _names(self) -> dict[str, object]:
        return {"tenant": self._tenant, "pipeline": self._pipeline}

    async def _append_once(self, taken: list[_Waiting]) -> list[_Waiting]:
        """Append the block once; what is left has to go again, without those in conflict."""
        refused = dict(self._refused)
        self._refused.clear()
        is_in = False
        try:
            uuid = ids.uuid7(int(self._now_s() * 1000), secrets.token_bytes(10))
            answer = await self._append_block(taken, uuid, refused)
            is_in = isinstance(answer, journal.Appended)
        except errors.TooLargeError:
            if len(taken) == 1:
                raise
            # Only together, maybe: none is refused for the company that it has.
            middle = len(taken) // 2
            await self._append(taken[:middle])
            await self._append(taken[middle:])
            return []
        finally:
            if not is_in:  # the next block takes the counts along
                for reason, count in refused.items():
                    self.refuse(reason, count)
        if isinstance(answer, journal.Conflicts):
            for index in answer.indexes:
                _fail(taken[index], conflict())
            return [w for index, w in enumerate(taken) if index not in answer.indexes]
        await self._answer(taken, uuid, answer.repeats)
        return []

    async def _append_block(
        self, taken: Sequence[_Waiting], uuid: bytes, refused: dict[str, int]
    ) -> journal.Appended | journal.AllRepeated | journal.Conflicts:
        pairs = [(w.request, w.part) for w in taken]
        payload = block.encode(uuid, self._tenant, self._pipeline, pairs, refused)
        with metrics.JOURNAL_APPEND_SECONDS.time():
            return await self._appender.append(
                self._pipeline,
                uuid,
                payload,
                accepted=sum(w.request.accepted for w in taken),
                size_bytes=sum(w.request.size_bytes for w in taken),
                requests=len(taken),
                keyed=keyed(taken),
            )

    async def _answer(
        self, taken: Sequence[_Waiting], uuid: bytes, repeats: Mapping[int, ids.Receipt]
    ) -> None:
        for index, waiting in enumerate(taken):
            if index == 1:
                await failpoint.reach_when_sent("ingest.mid_group", errors.UnavailableError)
            first = repeats.get(index)
            if not waiting.answer.done():
                waiting.answer.set_result(
                    Outcome(first or ids.Receipt(uuid, index), is_repeated=first is not None)
                )

    async def drain(self) -> None:
        """Return when nothing waits and nothing is in flight."""
        while self._waiting or self._in_flight:
            self._flush()
            await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)


def take(waiting: list[_Waiting]) -> tuple[list[_Waiting], list[_Waiting]]:
    """Return what goes into the next block, and what stays (repeats of a key in it among it)."""
    taken: list[_Waiting] = []
    left: list[_Waiting] = []
    seen: set[bytes] = set()
    size_bytes = records = 0
    for w in waiting:
        size_bytes += w.request.size_bytes
        records += w.request.records
        is_over = size_bytes > MAX_BYTES or records > bounds.MAX_RECORDS
        if (taken and is_over) or w.request.key in seen:
            left.append(w)
            continue
        if w.request.key:
            seen.add(w.request.key)
        taken.append(w)
    return taken, left


def keyed(taken: Sequence[_Waiting]) -> list[journal.KeyedRequest]:
    """Return those of the requests that have a key."""
    return [
        journal.KeyedRequest(index, w.request.key, w.request.fingerprint)
        for index, w in enumerate(taken)
        if w.request.key
    ]


def conflict() -> errors.KeyConflictError:
    """Return the refusal of a key that was used with another body."""
    return errors.KeyConflictError(
        "This Idempotency-Key was used before with another body.",
        hint="Use a new key for a new body; a retry sends the same bytes.",
    )


def _fail(waiting: _Waiting, error: errors.LogweirError) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)
