"""Decides how many collectors of a node run, and says what it has seen of each pipeline.

served pipelines + journals -> Scaler (logweir_operator) -> collectors.json, conditions, lag
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from redis import asyncio as redis

from logweir.backends.control import StoredObject
from logweir.core import errors
from logweir.core.backlog import Sample
from logweir.runtime.life import Life
from logweir.standalone import collectors
from logweir.standalone.collectors import Wanted
from logweir.standalone.folder import Folder, read_json, write_json
from logweir.standalone.supervisor import Status
from logweir_operator import plan, scaling
from logweir_operator.bindings import Served
from logweir_operator.model import LogPipeline
from logweir_operator.resources import Key, key_of
from logweir_operator.scaler import Scaled, Scaler

LAG_AGE_S: Final = 60.0
LAG_CHANGE: Final = 0.2
"""A lag that differs by less is not written down before it is so old."""

NAMES: Final = frozenset(collectors.names(collectors.LARGEST))


class NodeScaling:
    """Scales the collectors of one `up`."""

    def __init__(self, folder: Folder, journal: redis.Redis) -> None:
        self._folder = folder
        self._scaler = Scaler(journal, self._scaled, lambda _: None)
        self._served: Sequence[Served] = ()
        self._most, self._most_by = 1, ""
        self._count = 1

    async def run(self, life: Life) -> None:
        """Look and decide until the process stops."""
        await self._scaler.run(life)

    def use(self, served: Sequence[Served], connection_limits: Collection[int]) -> None:
        """Scale for what is served from now on, and write down how many are wanted.

        Args:
            served: the node's pipelines.
            connection_limits: of each tenant's logins: a collector takes some of all.

        Raises:
            SetupError: the file cannot be written.
        """
        budgets = [scaling.budget(one, 0) for one in connection_limits]
        limits = [(collectors.largest(collectors.cores()), "this machine")]
        limits += [(one, scaling.CONNECTION_LIMIT) for one in budgets]
        self._served, (self._most, self._most_by) = served, min(limits, key=lambda one: one[0])
        wishes = [one.replicas for one in self._scaler.decisions.values()]
        count = collectors.node_count(wishes or [self._count], self._most)
        if count != self._count or not self._folder.collectors.exists():
            write_json(self._folder.collectors, Wanted(count))
            self._count = count

    def _scaled(self) -> Mapping[Key, Scaled]:
        ready = self._ready()
        return {
            plan.key_of(one.resource): Scaled(
                tenant=one.tenant.id,
                pipeline=one.pipeline.id,
                resource=_on_a_node(one.resource),
                most=self._most,
                current=self._count,
                ready=ready,
                most_by=self._most_by,
            )
            for one in self._served
            if one.resource is not None and one.is_open
        }

    def _ready(self) -> int:
        try:
            status = read_json(self._folder.status, Status)
        except errors.SetupError:  # it is just being replaced, or there is none yet
            return 0
        return sum(one.state == "ready" and one.name in NAMES for one in status.processes)

    def conditions(self, stored: StoredObject) -> list[dict[str, Any]]:
        """Return the conditions ScalingActive and Fresh of a LogPipeline that was looked at."""
        key = key_of(stored)
        decision, fresh = self._scaler.decisions.get(key), self._scaler.fresh.get(key)
        if decision is None or fresh is None:
            return []
        is_sampled = decision.reason != "MetricsUnavailable"
        return [
            {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": message,
                "observedGeneration": stored.generation,
            }
            for kind, status, reason, message in (
                ("ScalingActive", str(is_sampled), decision.reason, decision.message),
                ("Fresh", *fresh),
            )
        ]

    def lag(self, stored: StoredObject) -> dict[str, Any]:
        """Return the status fields that say what waits in a LogPipeline's journal; one that is
        much the same as in its status of now stays."""
        key = key_of(stored)
        decision, seen = self._scaler.decisions.get(key), self._scaler.samples.get(key)
        if decision is None or seen is None:
            return {}
        return {"lag": _lag(*seen, decision.memory, stored.status.get("lag", {}))}


def _on_a_node(resource: LogPipeline) -> LogPipeline:
    """A node has no KEDA, and its collectors are never all asleep."""
    collector = resource.spec.collector
    autoscaling = collector.autoscaling
    if autoscaling.driver == "KEDA":
        autoscaling = msgspec.structs.replace(autoscaling, driver="Internal")
    autoscaling = msgspec.structs.replace(
        autoscaling, min_replicas=max(1, autoscaling.min_replicas)
    )
    collector = msgspec.structs.replace(collector, autoscaling=autoscaling)
    spec = msgspec.structs.replace(resource.spec, collector=collector)
    return msgspec.structs.replace(resource, spec=spec)


def _lag(
    sample: Sample, at: datetime, memory: scaling.Memory, before: Mapping[str, Any]
) -> dict[str, Any]:
    lag = {
        "entries": sample.entries,
        "backlogBytes": sample.backlog_bytes,
        "oldestSeconds": round(sample.oldest_age_s or 0.0, 1),
        "arrivalBytesPerSecond": round(memory.arrival or 0.0),
        "drainBytesPerSecond": round(memory.drain or 0.0),
        "drain": scaling.drain_text(sample, memory),
        "sampledAt": at.isoformat(timespec="seconds"),
    }
    if not before:
        return lag
    age_s = (at - datetime.fromisoformat(before["sampledAt"])).total_seconds()
    is_alike = all(
        abs(lag[name] - before[name]) <= LAG_CHANGE * max(abs(before[name]), 1.0)
        for name in ("entries", "backlogBytes", "arrivalBytesPerSecond", "drainBytesPerSecond")
    )
    return dict(before) if is_alike and age_s < LAG_AGE_S else lag
