"""The loop that drains one tenant's journal into its store.

    recover own pending -> read new -> Buffer -> Store.commit -> ack
                               ^-- every 15 s: claim what a dead collector left

Order is the promise: acknowledge after the COMMIT was answered, never before. Whatever fails in
between leaves the entries pending, and they are settled again.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from logweir.backends import journal, store
from logweir.collector import breaker
from logweir.collector.buffer import READ_ENTRIES, Buffer, deliver
from logweir.core import errors, ids, settle
from logweir.core.binding import CollectorPipeline, CollectorTenant
from logweir.runtime import metrics
from logweir.runtime.life import Life

logger = logging.getLogger(__name__)

IDLE_BLOCK_S: Final = 1.0
"""How long a read waits when nothing is held; also how fast a new pipeline is noticed."""

CLAIM_EVERY_S: Final = 15.0
CLAIM_IDLE_S: Final = 90.0
"""Longer than a commit may take, so that nobody claims what is being stored."""

BACKOFF_S: Final = (0.2, 10.0)


class _Line:
    """One pipeline of the tenant: its buffer, its breaker, and how far recovery came."""

    def __init__(self, pipeline: CollectorPipeline) -> None:
        self.pipeline = pipeline
        self.buffer = Buffer(pipeline.linger_s)
        self.breaker = breaker.Breaker()
        self.recover_after: str | None = "0"
        self.unknown: set[str] = set()
        self.oldest_pending_ms: int | None = None


class Worker:
    """Collects all pipelines of one tenant; one task runs it."""

    def __init__(self, tenant: CollectorTenant, consumer: str, life: Life) -> None:
        self._tenant = tenant
        self._life = life
        self._reader = journal.Reader(tenant.journal, tenant.journal_login, tenant.tenant, consumer)
        self._store = store.Store(tenant.store, tenant.store_login, tenant.tenant)
        self._lines = {one.id: _Line(one) for one in tenant.pipelines}
        self._claim_at_s = 0.0
        self._failures = 0

    async def run(self) -> None:
        """Drain until the process stops or the task is cancelled; store what is held, then end."""
        part = f"tenant {self._tenant.tenant}"
        try:
            while not self._life.stopping.is_set():
                try:
                    await self._turn()
                    self._failures = 0
                    self._life.report(part)
                except errors.LogweirError as error:
                    self._life.report(part, str(error))
                    await self._life.pause(self._backoff_s())
            for line in self._lines.values():
                await self._flush(line)
        except errors.LogweirError as error:
            logger.warning("left for the next collector", extra={"part": part, "why": str(error)})
        finally:
            await self._reader.close()
            await self._store.close()

    def _backoff_s(self) -> float:
        self._failures += 1
        low, high = BACKOFF_S
        return random.uniform(low, min(high, low * 2**self._failures))  # noqa: S311 - jitter

    async def _turn(self) -> None:
        now_s = time.monotonic()
        for line in self._lines.values():
            if line.recover_after is not None and not line.breaker.is_open(now_s):
                await self._recover(line)
        if now_s >= self._claim_at_s:
            await self._claim()
            self._claim_at_s = time.monotonic() + CLAIM_EVERY_S
        await self._flush_due()
        await self._read()
        await self._flush_due()

    async def _recover(self, line: _Line) -> None:
        """Take again what was handed to this consumer before it died."""
        while line.recover_after is not None:
            entries = await self._reader.own_pending(
                line.pipeline.id, line.recover_after, READ_ENTRIES
            )
            line.recover_after = entries[-1].id if entries else None
            await self._take(line, entries)

    async def _claim(self) -> None:
        for line in self._lines.values():
            entries = await self._reader.claim(line.pipeline.id, CLAIM_IDLE_S, READ_ENTRIES)
            await self._take(line, entries)
            line.oldest_pending_ms = await self._reader.oldest_pending_ms(line.pipeline.id)
            backlog = await self._reader.backlog(line.pipeline.id)
            metrics.JOURNAL_BACKLOG_ENTRIES.labels(*self._labels(line)).set(backlog)

    async def _read(self) -> None:
        now_s = time.monotonic()
        open_lines = {
            one.pipeline.id: one
            for one in self._lines.values()
            if one.recover_after is None and not one.breaker.is_open(now_s)
        }
        waits = [w for one in self._lines.values() if (w := one.buffer.wait_s(now_s)) is not None]
        block_s = min([IDLE_BLOCK_S, *waits])
        if not open_lines:
            await self._life.pause(block_s)
            return
        found = await self._reader.read(list(open_lines), READ_ENTRIES, max(block_s, 0.001))
        for pipeline, entries in found.items():
            await self._take(open_lines[pipeline], entries)

    async def _take(self, line: _Line, entries: Sequence[journal.Entry]) -> None:
        """Put entries into the buffer, flushing whenever it is full."""
        for entry in entries:
            if line.buffer.holds(entry.id) or entry.id in line.unknown:
                continue
            if not entry.payload:  # deleted while it was pending: it is stored
                await self._reader.ack(line.pipeline.id, [entry])
                continue
            try:
                delivery = deliver(entry, self._tenant.tenant, line.pipeline.id)
            except errors.UnknownVersionError as error:
                self._leave(line, entry, error)
                continue
            if not self._judge(line, delivery):
                return
            line.buffer.add(entry, delivery, time.monotonic())
            if line.buffer.wait_s(time.monotonic()) == 0:
                await self._flush(line)

    def _leave(self, line: _Line, entry: journal.Entry, error: errors.LogweirError) -> None:
        """A block of a newer version stays pending until a newer collector takes it."""
        line.unknown.add(entry.id)
        metrics.COLLECTOR_BLOCKS.labels(*self._labels(line), "unknown_version").inc()
        logger.error(
            "block left alone",
            extra={"tenant": self._tenant.tenant, "entry": entry.id, "why": str(error)},
        )

    def _judge(self, line: _Line, delivery: settle.Delivery) -> bool:
        """Feed the breaker; false when it has opened, and all that is held was let go."""
        is_bad = bool(delivery.problem)
        line.breaker = breaker.after(line.breaker, is_bad, time.monotonic())
        is_open = line.breaker.is_open(time.monotonic())
        metrics.COLLECTOR_BREAKER_OPEN.labels(*self._labels(line)).set(is_open)
        part = f"breaker {self._tenant.tenant}/{line.pipeline.name}"
        if is_open:
            line.buffer.clear()
            line.recover_after = "0"
            self._life.report(part, f"too many damaged blocks, the last: {delivery.problem}")
        elif is_bad:
            logger.error(
                "block quarantined",
                extra={"tenant": self._tenant.tenant, "why": delivery.problem},
            )
        else:
            self._life.report(part)
        return not is_open

    async def _flush_due(self) -> None:
        for line in self._lines.values():
            if line.buffer.wait_s(time.monotonic()) == 0:
                await self._flush(line)

    async def _flush(self, line: _Line) -> None:
        """Store what is held, then acknowledge it; on failure it stays held."""
        if not line.buffer.entries:
            return
        entries, deliveries = line.buffer.entries, line.buffer.deliveries
        try:
            await self._commit(line, deliveries)
        except store.RefusedByStoreError:
            for delivery in deliveries:
                await self._commit_alone(line, delivery)
        line.buffer.clear()
        await self._reader.ack(line.pipeline.id, entries)

    async def _commit_alone(self, line: _Line, delivery: settle.Delivery) -> None:
        """Store one block by itself; what the store refuses goes to quarantine as it is."""
        try:
            await self._commit(line, [delivery])
        except store.RefusedByStoreError as error:
            bad = settle.Delivery(
                delivery.entry_id,
                delivery.uuid,
                delivery.accepted,
                delivery.payload,
                problem=f"refused by the store: {error.message}",
            )
            await self._commit(line, [bad])

    async def _commit(self, line: _Line, deliveries: Sequence[settle.Delivery]) -> None:
        with metrics.COLLECTOR_COMMIT_SECONDS.time():
            done = await self._store.commit(
                line.pipeline.id,
                deliveries,
                now_ns=time.time_ns(),
                retention_days=line.pipeline.retention_days,
                oldest_pending_ms=_oldest_ms(line, deliveries),
            )
        self._count(line, done)

    def _count(self, line: _Line, done: store.Committed) -> None:
        labels = self._labels(line)
        total = store.totals(done.results)
        for outcome, count in msgspec.structs.asdict(total).items():
            metrics.COLLECTOR_RECORDS.labels(*labels, outcome).inc(count)
        poisoned = sum(1 for result in done.results if result.delivery.problem)
        metrics.COLLECTOR_BLOCKS.labels(*labels, "poisoned").inc(poisoned)
        metrics.COLLECTOR_BLOCKS.labels(*labels, "stored").inc(len(done.results) - poisoned)
        metrics.COLLECTOR_BLOCKS.labels(*labels, "repeated").inc(len(done.repeated))
        now_ms = time.time() * 1000
        for result in done.results:
            age_s = (now_ms - ids.time_ms(result.delivery.uuid)) / 1000
            metrics.COLLECTOR_QUERYABLE_SECONDS.labels(*labels).observe(max(0.0, age_s))

    def _labels(self, line: _Line) -> tuple[str, str]:
        return self._tenant.tenant, line.pipeline.name


def _oldest_ms(line: _Line, deliveries: Sequence[settle.Delivery]) -> int:
    """The oldest arrival that is not acknowledged: as last seen, or in this batch."""
    arrivals_ms = [journal.time_ms(one.entry_id) for one in deliveries]
    if line.oldest_pending_ms is not None:
        arrivals_ms.append(line.oldest_pending_ms)
    return min(arrivals_ms)
