"""The loop that drains one tenant's journal into its store.

    recover own pending -> read new -> Buffer -> Store.commit -> ack
                               ^-- every 15 s: claim what a dead collector left

Order is the promise: acknowledge after the COMMIT was answered, never before. Whatever fails in
between leaves the entries pending, and they are settled again. While the store does not answer,
nothing more is taken, so memory is bounded whatever the backlog.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from logweir.backends import failpoint, journal, store
from logweir.collector import breaker
from logweir.collector.buffer import Buffer, Held, deliver, next_count, refused
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

BACKOFF_S: Final = (0.2, 2.0)
"""Short enough that a server which is back is used at once, as many tenants' data may wait."""

FULL_PAUSE_S: Final = 0.1
MAX_UNKNOWN: Final = 1000
"""Blocks of a newer version left alone before a pipeline takes no more: they wait for another
collector, and are remembered here meanwhile."""


class _Line:
    """One pipeline of the tenant: its buffer, its breaker, and how far recovery came.

    `recover_after` is the id after which this consumer's own pending entries are read again, None
    when there is nothing to recover.
    """

    def __init__(self, pipeline: CollectorPipeline, held: Held) -> None:
        self.pipeline = pipeline
        self.buffer = Buffer(pipeline.linger_s, held)
        self.breaker = breaker.Breaker()
        self.recover_after: str | None = "0"
        self.unknown: set[str] = set()
        self.oldest_pending_ms: int | None = None

    def is_still(self) -> bool:
        """Whether nothing more is taken from it."""
        return self.breaker.is_open(time.monotonic()) or len(self.unknown) >= MAX_UNKNOWN


class Worker:
    """Collects all pipelines of one tenant; one task runs it."""

    def __init__(
        self, tenant: CollectorTenant, consumer: str, life: Life, held: Held | None = None
    ) -> None:
        self._tenant = tenant
        self._life = life
        self._held = held or Held()
        self._reader = journal.Reader(tenant.journal, tenant.journal_login, tenant.tenant, consumer)
        self._store = store.Store(tenant.store, tenant.store_login, tenant.tenant)
        self.lines = {one.id: _Line(one, self._held) for one in tenant.pipelines}
        self._read_count = 1
        self._claim_at_s = 0.0
        self._failures = 0

    async def run(self) -> None:
        """Drain until the process stops, then store what is held; a cancelled task just ends."""
        part = f"tenant {self._tenant.tenant}"
        try:
            while not self._life.stopping.is_set():
                try:
                    await self._turn()
                    self._failures = 0
                    self._life.report(part)
                except errors.LogweirError as error:
                    self._life.report(part, str(error))
                    self._recover_all()
                    self._failures += 1
                    await self._life.pause(backoff_s(self._failures))
            for line in self.lines.values():
                await self._flush(line)
        except errors.LogweirError as error:
            logger.warning("left for the next collector", extra={"part": part, "why": str(error)})
        finally:
            for line in self.lines.values():
                self._life.forget(self._part("breaker", line))
                self._life.forget(self._part("versions", line))
                line.buffer.clear()
            await self._reader.close()
            await self._store.close()

    def _recover_all(self) -> None:
        """Look again for what was handed to this consumer and is not held: an answer may have been
        lost, or a read was only half worked through."""
        for line in self.lines.values():
            line.recover_after = "0"

    async def _turn(self) -> None:
        # First of all: while the store refuses what is held, nothing more is taken.
        await self._flush_due()
        if self._held.is_full and not await self._make_way():
            return
        is_claim_due = time.monotonic() >= self._claim_at_s
        if is_claim_due:
            await self._look()
        for line in self.lines.values():
            await self._recover(line)
        if is_claim_due:
            await self._claim()
            await self._store.close_idle()
            self._claim_at_s = time.monotonic() + CLAIM_EVERY_S
        await self._read()
        await self._flush_due()

    async def _make_way(self) -> bool:
        """Store all that is held here; false when other tenants hold too much, after a pause."""
        for line in self.lines.values():
            await self._flush(line)
        if self._held.is_full:
            await self._life.pause(FULL_PAUSE_S)
        return not self._held.is_full

    async def _look(self) -> None:
        """Ask the journal for its backlog, and how old the oldest entry is that was handed out."""
        for line in self.lines.values():
            line.oldest_pending_ms = await self._reader.oldest_pending_ms(line.pipeline.id)
            backlog = await self._reader.backlog(line.pipeline.id)
            metrics.JOURNAL_BACKLOG_ENTRIES.labels(*self._labels(line)).set(backlog)

    async def _recover(self, line: _Line) -> None:
        """Take again what was handed to this consumer before and is neither held nor stored."""
        while line.recover_after is not None and self._may_take(line):
            entries = await self._reader.own_pending(
                line.pipeline.id, line.recover_after, self._read_count
            )
            self._adapt(entries)
            line.recover_after = entries[-1].id if entries else None
            await self._take(line, entries)

    async def _claim(self) -> None:
        """Take over what a dead collector left, all of it."""
        for line in self.lines.values():
            while self._may_take(line):
                entries = await self._reader.claim(line.pipeline.id, CLAIM_IDLE_S, self._read_count)
                if not entries:
                    break
                self._adapt(entries)
                await self._take(line, entries)

    async def _read(self) -> None:
        now_s = time.monotonic()
        open_lines = {
            one.pipeline.id: one
            for one in self.lines.values()
            if one.recover_after is None and not one.is_still()
        }
        waits = [w for one in self.lines.values() if (w := one.buffer.wait_s(now_s)) is not None]
        block_s = min([IDLE_BLOCK_S, *waits])
        if not open_lines:
            await self._life.pause(block_s)
            return
        found = await self._reader.read(list(open_lines), self._read_count, max(block_s, 0.001))
        self._adapt([entry for entries in found.values() for entry in entries])
        for pipeline, entries in found.items():
            await self._take(open_lines[pipeline], entries)

    def _adapt(self, entries: Sequence[journal.Entry]) -> None:
        self._read_count = next_count(
            self._read_count, sum(len(entry.payload) for entry in entries)
        )

    def _may_take(self, line: _Line) -> bool:
        return not line.is_still() and not self._life.stopping.is_set()

    async def _take(self, line: _Line, entries: Sequence[journal.Entry]) -> None:
        """Put entries into the buffer, flushing whenever it is full."""
        for entry in entries:
            if line.buffer.holds(entry.id) or entry.id in line.unknown:
                continue
            if not (entry.payload or entry.uuid or entry.accepted):
                # Deleted while it was pending: it is stored.
                await self._reader.ack(line.pipeline.id, [entry])
                continue
            try:
                delivery = deliver(entry, self._tenant.tenant, line.pipeline.id)
            except errors.UnknownVersionError as error:
                self._leave(line, entry, error)
                continue
            if not line.buffer.has_room(delivery) and not await self._make_room(line):
                return
            line.buffer.add(entry, delivery, time.monotonic())
            if line.buffer.wait_s(time.monotonic()) == 0 and not await self._make_room(line):
                return

    async def _make_room(self, line: _Line) -> bool:
        """Store what is held; false when the pipeline stands still by now, and is read anew."""
        await self._flush(line)
        if line.is_still():
            line.recover_after = "0"
            return False
        return True

    def _leave(self, line: _Line, entry: journal.Entry, error: errors.LogweirError) -> None:
        """A block of a newer version stays pending until a newer collector takes it."""
        line.unknown.add(entry.id)
        metrics.COLLECTOR_BLOCKS.labels(*self._labels(line), "unknown_version").inc()
        self._life.report(self._part("versions", line), str(error))
        logger.error(
            "block left alone",
            extra={"tenant": self._tenant.tenant, "entry": entry.id, "why": str(error)},
        )

    async def _flush_due(self) -> None:
        for line in self.lines.values():
            if line.buffer.wait_s(time.monotonic()) == 0:
                await self._flush(line)

    async def _flush(self, line: _Line) -> None:
        """Store what is held, then acknowledge it; on failure it stays held."""
        entries = line.buffer.entries
        if not entries:
            return
        done = await self._store_in_order(line, line.buffer.deliveries)
        line.buffer.clear()
        if done < len(entries):  # the breaker opened: the others stay pending
            line.recover_after = "0"
        await self._reader.ack(line.pipeline.id, entries[:done])

    async def _store_in_order(self, line: _Line, deliveries: Sequence[settle.Delivery]) -> int:
        """Store blocks; return how many: all, or those up to the one that opened the breaker.

        What the store refuses is halved until the one block is found that it does not take; that
        goes to quarantine as it is.
        """
        judged, count = breaker.judge(
            line.breaker, [bool(one.problem) for one in deliveries], time.monotonic()
        )
        try:
            await self._commit(line, deliveries[:count])
        except store.RefusedByStoreError as error:
            if len(deliveries) > 1:
                return await self._store_halves(line, deliveries)
            [bad] = deliveries
            if bad.problem and bad.header is None:
                raise
            whole = refused(bad, bad.problem or f"refused by the store: {error.message}")
            if not bad.problem:  # else it is the header that is refused: its keys are lost
                whole = msgspec.structs.replace(whole, header=bad.header)
            return await self._store_in_order(line, [whole])
        self._report_damage(line, judged, deliveries[:count])
        return count

    async def _store_halves(self, line: _Line, deliveries: Sequence[settle.Delivery]) -> int:
        middle = len(deliveries) // 2
        done = await self._store_in_order(line, deliveries[:middle])
        if line.breaker.is_open(time.monotonic()):
            return done
        failpoint.reach("collector.mid_halves", errors.UnavailableError)
        return done + await self._store_in_order(line, deliveries[middle:])

    def _report_damage(
        self, line: _Line, judged: breaker.Breaker, stored: Sequence[settle.Delivery]
    ) -> None:
        problems = [one.problem for one in stored if one.problem]
        for problem in problems:
            logger.error("block quarantined", extra={"tenant": self._tenant.tenant, "why": problem})
        is_open = judged.is_open(time.monotonic())
        if is_open:
            what = f"too many damaged blocks, the last: {problems[-1]}"
            self._life.report(self._part("breaker", line), what)
        elif line.breaker.open_until_s:
            self._life.report(self._part("breaker", line))
        metrics.COLLECTOR_BREAKER_OPEN.labels(*self._labels(line)).set(is_open)
        line.breaker = judged

    async def _commit(self, line: _Line, deliveries: Sequence[settle.Delivery]) -> None:
        with metrics.COLLECTOR_COMMIT_SECONDS.time():
            done = await self._store.commit(
                line.pipeline.id,
                deliveries,
                now_ns=time.time_ns(),
                retention_days=line.pipeline.retention_days,
                oldest_pending_ms=_oldest_ms(line, deliveries),
            )
        self._count_records(line, done)

    def _count_records(self, line: _Line, done: store.Committed) -> None:
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

    def _part(self, what: str, line: _Line) -> str:
        """Name of a part of the process's readiness."""
        return f"{what} {self._tenant.tenant}/{line.pipeline.name}"


def backoff_s(failures: int) -> float:
    """How long to pause after so many failures in a row: longer, and never the same for two."""
    low, high = BACKOFF_S
    return random.uniform(low, min(high, low * 2 ** min(failures, 10)))  # noqa: S311 - jitter


def _oldest_ms(line: _Line, deliveries: Sequence[settle.Delivery]) -> int:
    """The oldest arrival that is not acknowledged: as last seen, or in this batch."""
    arrivals_ms = [journal.time_ms(one.entry_id) for one in deliveries]
    if line.oldest_pending_ms is not None:
        arrivals_ms.append(line.oldest_pending_ms)
    return min(arrivals_ms)
