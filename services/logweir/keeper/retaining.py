"""Retention as a piece of a visit: asks retention.py what goes, lets it go, notes what is left.

    expired partitions -> expired segments -> what is over the bytes -> metrics, `storage`

A partition that cannot be dropped yet, because a query runs that is older than the decision or
that holds a lock, is tried again at the next visit: each try makes all others wait for a moment.
After some visits its segments are deleted instead, so that what has expired always goes.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from logweir.backends.control import Storage
from logweir.backends.retention_store import (
    BATCH_SEGMENTS,
    Dropped,
    Kept,
    Partition,
    RetentionStore,
)
from logweir.core import errors, moments
from logweir.core.names import TenantId
from logweir.keeper import retention
from logweir.keeper.retention import Rules
from logweir.runtime import metrics

MAX_WAITS: Final = 5
"""Visits at which a partition could not be dropped, before its segments are deleted."""

Between = Callable[[], Awaitable[None]]
"""Called between two pieces of work; it raises when the visit is to end, or `OutOfTimeError`."""


class OutOfTimeError(Exception):
    """The others have their turn: what is left over goes at the next visit."""


class Retaining:
    """Retention of one tenant. `between` is called between two transactions, `now_ns` says the
    store's time: a keeper's own clock may be ahead, and would let go what nobody gets back.
    `waits` counts for the visits of a process, by the start of a partition, how often it had to
    stay."""

    def __init__(
        self,
        tenant: TenantId,
        store: RetentionStore,
        rules: Rules,
        between: Between,
        now_ns: Callable[[], int],
        waits: dict[int, int],
    ) -> None:
        self._tenant = tenant
        self._store = store
        self._rules = rules
        self._between = between
        self._now_ns = now_ns
        self._waits = waits
        self._tried: set[int] = set()
        self._problem: errors.UnavailableError | None = None

    async def run(self, before: Storage, *, is_whole: bool) -> tuple[Storage, bool]:
        """Let go what is to go; return what is left, which is noted in the store, and whether all
        went that could.

        Args:
            before: what the last visit returned.
            is_whole: look at all segments: make usage add up, and find out what goes next.

        Raises:
            UnavailableError: the store does not answer, or a partition could not be dropped; what
                else is to go has gone then.
        """
        is_finished = True
        try:
            await self._drop_expired()
            await self._delete_expired()
            await self._shrink()
        except OutOfTimeError:
            is_finished = False
        if is_whole and is_finished:
            corrected_bytes = await self._store.correct_usage()
            metrics.KEEPER_CORRECTED_BYTES.inc(corrected_bytes)
        found = await self._store.storage()
        next_ns = before.next_drop_ns
        if is_whole or found.oldest_ns != before.oldest_ns:
            firsts = await self._store.first_of_each()
            partitions = await self._store.partitions()
            next_ns = retention.next_drop_ns(self._rules, partitions, firsts, self._now_ns())
        found = msgspec.structs.replace(found, next_drop_ns=next_ns)
        await self._store.note(found)
        show(self._tenant, found)
        if self._problem is not None:
            raise self._problem
        return found, is_finished

    async def _drop_expired(self) -> None:
        partitions = await self._store.partitions()
        for gone in self._waits.keys() - {one.low for one in partitions}:
            del self._waits[gone]
        for one in retention.by_time(self._rules, partitions, [], self._now_ns()).drop:
            if not await self._drop(one):
                return

    async def _drop(self, partition: Partition) -> bool:
        """Drop a partition; false when it stays for now. It is tried once a visit."""
        if partition.low in self._tried:
            return False
        self._tried.add(partition.low)
        await self._between()
        found: Dropped = "waits"
        try:
            found = await self._store.drop_partition(partition)
        except errors.UnavailableError as error:
            self._problem = error
        if found == "dropped":
            metrics.KEEPER_DROPPED_PARTITIONS.inc()
        elif found == "waits":
            self._waits[partition.low] = self._waits.get(partition.low, 0) + 1
        return found in ("dropped", "gone")

    def _is_stuck(self, partition: Partition) -> bool:
        """Whether a partition has stayed for so long that its segments go by themselves."""
        return self._waits.get(partition.low, 0) >= MAX_WAITS

    async def _delete_expired(self) -> None:
        now_ns = self._now_ns()
        partitions = [one for one in await self._store.partitions() if not self._is_stuck(one)]
        others_ns = now_ns - self._rules.longest_ns
        before = {one: now_ns - self._rules.kept_ns(one) for one in self._rules.by_pipeline}
        after = (-moments.NS_PER_DAY, -1)
        while True:
            found = await self._store.expired(before, others_ns, after)
            await self._delete(retention.by_time(self._rules, partitions, found, now_ns).delete)
            if len(found) < BATCH_SEGMENTS:
                return
            after = (found[-1].min_ts, found[-1].id)
            await self._between()

    async def _delete(self, segments: tuple[Kept, ...]) -> None:
        if segments:
            await self._between()
            await self._store.delete(segments)
            metrics.KEEPER_EXPIRED_SEGMENTS.inc(len(segments))

    async def _shrink(self) -> None:
        """Let the oldest go until what is left is no more than the tenant keeps."""
        most_bytes = await self._store.retention_bytes()
        while most_bytes is not None:
            if (await self._store.storage()).stored_bytes <= most_bytes:
                return
            # Not by what usage says: nothing may go because of a wrong sum.
            partitions = await self._store.partitions(with_bytes=True)
            over_bytes = sum(one.bytes for one in partitions) - most_bytes
            if over_bytes <= 0:
                return
            droppable = list(itertools.takewhile(lambda one: not self._is_stuck(one), partitions))
            drop = retention.by_bytes(droppable, [], over_bytes).drop
            for one in drop:
                if not await self._drop(one):
                    return
            oldest = await self._store.oldest(drop[-1].high if drop else 0)
            delete = retention.by_bytes(droppable, oldest, over_bytes).delete
            await self._delete(delete)


def show(tenant: TenantId, storage: Storage) -> None:
    """Set the metrics of a tenant."""
    metrics.TENANT_STORED_BYTES.labels(tenant).set(storage.stored_bytes)
    for metric, time_ns in (
        (metrics.TENANT_OLDEST_RECORD, storage.oldest_ns),
        (metrics.TENANT_NEXT_DROP, storage.next_drop_ns),
    ):
        metric.labels(tenant).set(0 if time_ns is None else time_ns / moments.NS_PER_S)


def hide(tenant: TenantId) -> None:
    """Remove the metrics of a tenant that is kept by another process, or is gone."""
    for metric in (
        metrics.TENANT_STORED_BYTES,
        metrics.TENANT_OLDEST_RECORD,
        metrics.TENANT_NEXT_DROP,
    ):
        metric.remove(tenant)
