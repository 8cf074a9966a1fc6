"""Looks at the journals of all pipelines, and knows how many collectors each should have.

each 2 s: those at zero, and those whose spec is new; each 15 s: all
    samples in one round trip -> scaling.decide -> decisions -> queue, where they change
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

import msgspec
from redis import asyncio as redis

from logweir.backends import backlog
from logweir.core import errors
from logweir.core.backlog import Sample
from logweir.core.names import PipelineId, TenantId
from logweir.runtime import metrics
from logweir.runtime.life import Life
from logweir_operator import scaling
from logweir_operator.model import LogPipeline, LogPipelineSpec
from logweir_operator.resources import Key

logger = logging.getLogger(__name__)

LOOK_S: Final = 2.0

NEWS_SHARE: Final = 0.2
NEWS_S: Final = 60.0
"""A backlog is told when it has changed by this share; whatever has changed, after this time."""


class Scaled(msgspec.Struct, frozen=True):
    """A pipeline that is to be scaled: its ids, its spec, the collectors that it has, those of them
    that are ready, and the `most` that there may be, with what allows no more in words."""

    tenant: TenantId
    pipeline: PipelineId
    resource: LogPipeline
    most: int
    current: int
    ready: int
    most_by: str = scaling.CONNECTION_LIMIT


class _Shown(msgspec.Struct, frozen=True):
    """The metrics of one pipeline."""

    tenant: str = ""
    pipeline: str = ""

    def set(self, sample: Sample | None, *, is_at_maximum: bool) -> None:
        if sample is not None:  # else the last one stands
            oldest = metrics.OPERATOR_OLDEST_SECONDS.labels(self.tenant, self.pipeline)
            oldest.set(sample.oldest_age_s or 0.0)
        metrics.OPERATOR_AT_MAXIMUM.labels(self.tenant, self.pipeline).set(is_at_maximum)

    def forget(self) -> None:
        for gauge in (metrics.OPERATOR_OLDEST_SECONDS, metrics.OPERATOR_AT_MAXIMUM):
            gauge.remove_by_labels({"tenant": self.tenant, "pipeline": self.pipeline})


class _Told(msgspec.Struct, frozen=True):
    """A sample that was written down, when, and all that a status shows of it."""

    at_s: float
    sample: Sample
    shown: tuple[int, ...]


def _figures(sample: Sample, memory: scaling.Memory) -> tuple[int, ...]:
    """All that a status shows: also of what stands still the age grows, and rates fade."""
    rest = (sample.oldest_age_s, memory.arrival, memory.drain)
    return (sample.entries, sample.backlog_bytes, *(int(one or 0) for one in rest))


class Scaler:
    """Decides for all pipelines.

    Args:
        journal: of all of them.
        pipelines: returns those that are to be scaled now.
        told: called with the key of each whose number of collectors changes.
    """

    def __init__(
        self,
        journal: redis.Redis,
        pipelines: Callable[[], Mapping[Key, Scaled]],
        told: Callable[[Key], None],
    ) -> None:
        self._journal = journal
        self._pipelines = pipelines
        self._told = told
        self._memories: dict[Key, scaling.Memory] = {}
        self._due_s: dict[Key, float] = {}
        self._specs: dict[Key, LogPipelineSpec] = {}
        self._shown: dict[Key, _Shown] = {}
        self.decisions: dict[Key, scaling.Decision] = {}
        self.samples: dict[Key, tuple[Sample, datetime]] = {}
        self.fresh: dict[Key, scaling.Fresh] = {}
        """Status, reason and message of each one's condition Fresh."""
        self._told_of: dict[Key, _Told] = {}

    async def run(self, life: Life) -> None:
        """Look and decide until the process stops."""
        while not life.stopping.is_set():
            try:
                await self._look()
            except Exception:
                logger.exception("not scaled")
            await life.pause(LOOK_S)

    async def _look(self) -> None:
        now_s = time.monotonic()
        wanted = self._pipelines()
        for gone in self._memories.keys() - wanted.keys():
            self._shown.pop(gone, _Shown()).forget()
            for known in (
                self._memories,
                self._due_s,
                self._specs,
                self.decisions,
                self.samples,
                self.fresh,
                self._told_of,
            ):
                known.pop(gone, None)
            metrics.forget_scaled(*gone[1:])
        due = {
            key: one
            for key, one in wanted.items()
            if self._due_s.get(key, 0.0) <= now_s or one.resource.spec != self._specs.get(key)
        }
        if not due:
            return
        try:
            found = await backlog.samples(
                self._journal, [(one.tenant, one.pipeline) for one in due.values()]
            )
        except errors.UnavailableError as error:
            logger.warning("journals not looked at", extra={"problem": str(error)})
            found = {}
        at = datetime.now(UTC)
        for key, one in due.items():
            sample = found.get(one.pipeline)
            if sample is not None:
                self.samples[key] = (sample, at)
            self._decide(key, one, sample, now_s)

    def _decide(self, key: Key, one: Scaled, sample: Sample | None, now_s: float) -> None:
        collector = one.resource.spec.collector
        decision = scaling.decide(
            collector.autoscaling,
            one.resource.spec.slo.queryable_within_seconds,
            sample,
            self._memories.get(key) or scaling.Memory(),
            one.current,
            one.ready,
            now_s,
            manual=collector.replicas,
            most=one.most,
            most_by=one.most_by,
        )
        self._memories[key] = decision.memory
        within_s = one.resource.spec.slo.queryable_within_seconds
        was_fresh, fresh = self.fresh.get(key), scaling.fresh(within_s, sample, decision.memory)
        self.fresh[key] = fresh
        shown = self._shown[key] = _Shown(one.tenant, key[2])
        shown.set(sample, is_at_maximum=decision.reason == "AtMaximum")
        before = self.decisions.get(key)
        self.decisions[key] = decision
        self._due_s[key], self._specs[key] = decision.needs_at_s, one.resource.spec
        metrics.scaled(
            *key[1:],
            backlog_bytes=sample.backlog_bytes if sample else None,
            arrival=decision.memory.arrival,
            drain=decision.memory.drain,
            desired=decision.replicas,
            reason=decision.reason,
        )
        is_other = before is None or (before.replicas, before.reason) != (
            decision.replicas,
            decision.reason,
        )
        is_news = fresh != was_fresh or self._is_news(key, sample, decision.memory, now_s)
        if is_other or is_news or decision.replicas != one.current:
            if sample is not None:
                self._told_of[key] = _Told(now_s, sample, _figures(sample, decision.memory))
            self._told(key)

    def _is_news(
        self, key: Key, sample: Sample | None, memory: scaling.Memory, now_s: float
    ) -> bool:
        """Whether a sample is worth to be written down: each status costs the API server a write
        and everybody who watches a message."""
        if sample is None:
            return False
        told = self._told_of.get(key)
        if told is None or told.sample.is_empty != sample.is_empty:
            return True
        if now_s - told.at_s > NEWS_S:
            return told.shown != _figures(sample, memory)
        before = told.sample.backlog_bytes
        # What one second brings is always under way: it is another each time, and says nothing.
        if max(before, sample.backlog_bytes) <= (memory.arrival or 0.0):
            return False
        return abs(sample.backlog_bytes - before) > NEWS_SHARE * before
