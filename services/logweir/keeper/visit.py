"""One visit of a keeper to one tenant: what is due is done, piece by piece, under a lease.

    each:         retention (retaining.py); when it fails, the rest is done all the same
    upkeep:       partitions -> prune ledger -> prune producers -> sum usage
    look, sweep:  list small segments -> plan -> load -> combine -> replace ...

Between two pieces, each a transaction of its own, the visit renews its lease, and ends when the
process stops, when another keeper has the tenant, or when it has worked for long enough.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from logweir.backends import failpoint
from logweir.backends.control import Control, Storage
from logweir.backends.keeper_store import MAX_LISTED, PRUNE_PAGES
from logweir.backends.retention_store import RetentionStore
from logweir.core import errors, segment
from logweir.core.names import PipelineId, TenantId
from logweir.keeper import duties, merges
from logweir.keeper.retaining import OutOfTimeError, Retaining
from logweir.keeper.retention import Rules
from logweir.runtime import metrics
from logweir.runtime.life import Life

logger = logging.getLogger(__name__)

HOLD_S: Final = 60.0
"""How long a lease outlives its keeper."""

RENEW_S: Final = 20.0
"""After which a lease is taken again; no piece of work takes longer than what is left of it."""

VISIT_S: Final = 30.0
"""How long segments of one tenant go or are merged before the others have their turn."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

MAX_LEFT: Final = 10_000
"""Damaged segments of a tenant that are remembered; more are met and reported again and again."""


class LeaseHeldError(errors.LogweirError):
    """Another keeper has the tenant."""

    code = "lease_held"


class RetentionFailedError(errors.LogweirError):
    """Not all that is too old or too much could go; the rest of the visit was done."""

    code = "retention_failed"

    def __init__(self, text: str, *, is_finished: bool) -> None:
        super().__init__(text)
        self.is_finished = is_finished


class _EndedError(Exception):
    """The visit ends before it is finished."""


class Lease:
    """The right to serve one tenant, held by this process or not."""

    def __init__(self, control: Control, tenant: TenantId, holder: str) -> None:
        self._control = control
        self._name = f"keeper/{tenant}"
        self._holder = holder
        self._renew_at_s = float("-inf")

    async def hold(self) -> None:
        """Take the lease, or renew it when it is time to.

        Raises:
            LeaseHeldError: another keeper has it.
            UnavailableError: the control schema does not answer.
        """
        now_s = time.monotonic()
        if now_s < self._renew_at_s:
            return
        if not await self._control.take_lease(self._name, self._holder, HOLD_S):
            raise LeaseHeldError("Another keeper serves this tenant.")
        self._renew_at_s = now_s + RENEW_S

    @property
    def is_ours(self) -> bool:
        """Whether it was taken and may still be held."""
        return time.monotonic() < self._renew_at_s - RENEW_S + HOLD_S

    async def release(self) -> None:
        """Let another keeper have it at once."""
        await self._control.take_lease(self._name, self._holder, 0.0)


class Left(msgspec.Struct):
    """What a visit leaves behind for the next: segments that are left alone, as far as this process
    has met them, how often partitions could not be dropped, by their start, and what was stored."""

    damaged: set[int] = msgspec.field(default_factory=set)
    unknown_up_to: int = 0
    waits: dict[int, int] = msgspec.field(default_factory=dict)
    storage: Storage = Storage()


class Visit:
    """What one visit needs. `one_at_a_time` is the process's: merges take memory and a core."""

    def __init__(
        self,
        tenant: TenantId,
        store: RetentionStore,
        lease: Lease,
        left: Left,
        one_at_a_time: asyncio.Semaphore,
        life: Life,
    ) -> None:
        self._tenant = tenant
        self._store = store
        self._lease = lease
        self._left = left
        self._one_at_a_time = one_at_a_time
        self._life = life
        self._end_s = time.monotonic() + VISIT_S

    async def run(
        self, work: duties.Work, pipelines: Collection[PipelineId], rules: Rules | None = None
    ) -> bool:
        """Do the work; true when all of it was done.

        Args:
            work: what is due.
            pipelines: the tenant's, without those that are deleted.
            rules: how long their records and those of the deleted ones are kept; None: for ever.

        Raises:
            LeaseHeldError: another keeper serves the tenant; what was done is done.
            RetentionFailedError: retention failed, the rest is done.
            UnavailableError: the store or the control schema does not answer.
        """
        problem, is_retained = "", True
        try:
            await self._lease.hold()
            now = await self._store.now()
            if rules is not None:
                try:
                    is_retained = await self._retain(rules, _clock(now), is_whole=work == "upkeep")
                except (_EndedError, LeaseHeldError):
                    raise
                except errors.LogweirError as error:
                    problem = str(error)
                except Exception as error:
                    logger.exception("retention failed", extra={"tenant": self._tenant})
                    problem = type(error).__name__
            is_finished = await self._rest(work, pipelines, now) and is_retained
        except _EndedError:
            return False
        if problem:
            raise RetentionFailedError(problem, is_finished=is_finished)
        return is_finished

    async def _retain(self, rules: Rules, now_ns: Callable[[], int], *, is_whole: bool) -> bool:
        """Let go what is too old or too much; a schema that cannot yet keeps all. False when there
        was no time for all of it."""
        if not await self._store.is_migrated():
            return True
        with _counted("retention"):
            waits = self._left.waits
            between = self._next_in_time
            retaining = Retaining(self._tenant, self._store, rules, between, now_ns, waits)
            found = await retaining.run(self._left.storage, is_whole=is_whole)
            self._left.storage, is_finished = found
        return is_finished

    async def _rest(
        self, work: duties.Work, pipelines: Collection[PipelineId], now: datetime
    ) -> bool:
        if work == "upkeep":
            await self._upkeep(pipelines, now)
            return True
        since = now - duties.FRESH if work == "look" else EPOCH
        return await self._merge((int(since.timestamp()) * 10**9, -1))

    async def _upkeep(self, pipelines: Collection[PipelineId], now: datetime) -> None:
        with _counted("partitions"):
            await self._store.ensure_partitions()
        with _counted("prune_ledger"):
            await self._prune_ledger(pipelines, now)
        with _counted("prune_producers"):
            await self._prune_producers(now)
        with _counted("sum_usage"):
            while await self._store.sum_usage(now - duties.USAGE_KEPT):
                await self._next()
        await self._report_unknown()

    async def _next(self) -> None:
        """Between two pieces of work.

        Raises:
            _EndedError: the process stops.
            LeaseHeldError: another keeper has the tenant by now.
        """
        if self._life.stopping.is_set():
            raise _EndedError
        failpoint.reach("keeper.between_pieces", errors.UnavailableError)
        await self._lease.hold()

    async def _next_in_time(self) -> None:
        """The same where the others' turn is not to be waited for any longer.

        Raises:
            OutOfTimeError: the visit has lasted for long enough.
        """
        await self._next()
        if time.monotonic() >= self._end_s:
            raise OutOfTimeError

    # ---- ledgers -----------------------------------------------------------------------------

    async def _prune_ledger(self, pipelines: Collection[PipelineId], now: datetime) -> None:
        found = duties.cutoffs(await self._store.horizons(), pipelines, now)
        for first_page in range(0, await self._store.ledger_pages(), PRUNE_PAGES):
            await self._next()
            gone = await self._store.prune_ledger(first_page, found.by_pipeline, found.others)
            metrics.KEEPER_PRUNED_ROWS.labels("ledger").inc(gone)

    async def _prune_producers(self, now: datetime) -> None:
        while gone := await self._store.prune_producers(now - duties.PRODUCER_KEPT):
            metrics.KEEPER_PRUNED_ROWS.labels("producers").inc(gone)
            await self._next()

    # ---- segments ----------------------------------------------------------------------------

    async def _merge(self, after: tuple[int, int]) -> bool:
        """Merge what is worth it, once: what comes out may be merged again at the next visit.

        Args:
            after: time and id behind which to look.

        Returns:
            Whether all was done for now.
        """
        is_finished = True
        with _counted("merge"):
            while True:
                found = await self._store.small_segments(
                    after,
                    max_n=merges.MAX_SMALL_RECORDS,
                    max_raw_bytes=merges.MAX_SMALL_RAW_BYTES,
                    left=self._left.damaged,
                )
                for group in merges.plan(found):
                    await self._next()
                    if time.monotonic() >= self._end_s:
                        return False
                    is_finished &= await self._merge_group(group)
                if len(found) < MAX_LISTED:
                    return is_finished
                after = (found[-1].min_ts, found[-1].id)
                await self._next()

    async def _merge_group(self, group: merges.Group) -> bool:
        """Merge a group; false when a part of it could be merged without the rest."""
        segments = await self._store.load(group)
        if not segments:
            return True  # another keeper was faster
        try:
            async with self._one_at_a_time:
                merged = await asyncio.to_thread(merges.combine, segments)
        except merges.DamagedSegmentsError as error:
            return not self._leave({group[at].id: why for at, why in error.reasons.items()})
        if await self._store.replace(group, merged):
            metrics.KEEPER_MERGED_SEGMENTS.inc(len(group))
        return True

    def _leave(self, reasons: dict[int, str]) -> bool:
        """Report damaged segments; true when they are remembered, so that the next visit merges
        their neighbours without them."""
        for segment_id, reason in reasons.items():
            metrics.KEEPER_LEFT_SEGMENTS.labels("damaged").inc()
            logger.error(
                "segment damaged",
                extra={"tenant": self._tenant, "segment": segment_id, "reason": reason},
            )
        if len(self._left.damaged) >= MAX_LEFT:
            return False
        self._left.damaged |= reasons.keys()
        return True

    async def _report_unknown(self) -> None:
        count, self._left.unknown_up_to = await self._store.unknown_segments(
            self._left.unknown_up_to
        )
        if count:
            metrics.KEEPER_LEFT_SEGMENTS.labels("unknown_version").inc(count)
            logger.warning(
                "segments of a newer program left alone",
                extra={"tenant": self._tenant, "segments": count, "known": segment.VERSION},
            )


def _clock(now: datetime) -> Callable[[], int]:
    """Goes on from the store's time of now; in nanoseconds."""
    read_ns = time.monotonic_ns()
    now_ns = (now - EPOCH) // timedelta(microseconds=1) * 1000
    return lambda: now_ns + time.monotonic_ns() - read_ns


@contextlib.contextmanager
def _counted(duty: str) -> Iterator[None]:
    """Count a duty as done, or as failed or ended by what it raises."""
    outcome = "failed"
    try:
        yield
        outcome = "done"
    except (_EndedError, LeaseHeldError):
        outcome = "ended"
        raise
    finally:
        metrics.KEEPER_RUNS.labels(duty, outcome).inc()
