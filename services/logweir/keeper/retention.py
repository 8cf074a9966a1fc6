"""Which partitions and segments go, by days and by bytes. Pure; times are handed in.

    by_time()   what no query may find any more, because it is older than its pipeline keeps
    by_bytes()  the oldest of what is more than the tenant keeps
    next_drop_ns() when something will be too old

A partition that is dropped costs nothing; a segment that is deleted is written to the WAL once
more, and leaves a hole. So what has expired stays until its partition goes when that is soon: in a
quarter of the time that it was kept. Meanwhile no query finds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from logweir.backends.retention_store import Kept, Partition
from logweir.core import moments
from logweir.core.names import PipelineId

GRACE_NS: Final = 300 * moments.NS_PER_S
"""How long a partition outlives its last record; `drop_partition` has the same number."""

WAIT_SHARE: Final = 4
"""What has expired waits for its partition for the time that it was kept divided by this."""


class Rules(msgspec.Struct, frozen=True):
    """How many days a tenant keeps records; a pipeline of its own may keep them for less."""

    days: int
    by_pipeline: Mapping[PipelineId, int] = {}

    def kept_ns(self, pipeline: PipelineId) -> int:
        """How long records of a pipeline are kept."""
        return min(self.days, self.by_pipeline.get(pipeline, self.days)) * moments.NS_PER_DAY

    @property
    def longest_ns(self) -> int:
        """How long a partition is kept, whatever is in it."""
        return self.days * moments.NS_PER_DAY


class Plan(msgspec.Struct, frozen=True):
    """Partitions to drop, and segments to delete that are in none of these; the oldest first."""

    drop: tuple[Partition, ...] = ()
    delete: tuple[Kept, ...] = ()


def by_time(
    rules: Rules, partitions: Iterable[Partition], segments: Iterable[Kept], now_ns: int
) -> Plan:
    """Return what has expired and is to go now.

    Args:
        rules: of the tenant.
        partitions: of its store.
        segments: that may have expired.
        now_ns: the store's time.
    """
    places = sorted(partitions, key=lambda one: one.low)
    drop = tuple(one for one in places if _dropped_ns(rules, one) <= now_ns)
    delete = (
        one
        for one in segments
        if one.max_ts < now_ns - rules.kept_ns(one.pipeline)
        and _goes_ns(rules, places, one, now_ns) <= now_ns
        and not any(_holds(place, one) for place in drop)
    )
    return Plan(drop, tuple(sorted(delete, key=lambda one: (one.min_ts, one.id))))


def _dropped_ns(rules: Rules, partition: Partition) -> int:
    return partition.high + rules.longest_ns + GRACE_NS


def _goes_ns(rules: Rules, places: Sequence[Partition], one: Kept, now_ns: int) -> int:
    """When a segment goes: with its partition, or by itself when that is late."""
    kept_ns = rules.kept_ns(one.pipeline)
    expires_ns = max(now_ns, one.max_ts + kept_ns + 1)
    for place in places:
        if _holds(place, one):
            dropped_ns = _dropped_ns(rules, place)
            is_soon = dropped_ns - expires_ns <= kept_ns // WAIT_SHARE
            return max(dropped_ns, now_ns) if is_soon else expires_ns
    return expires_ns


def _holds(place: Partition, one: Kept) -> bool:
    return place.low <= one.min_ts < place.high


def by_bytes(partitions: Iterable[Partition], segments: Iterable[Kept], over_bytes: int) -> Plan:
    """Return the oldest of what is there, as little as is at least `over_bytes`.

    Args:
        partitions: of the store, with their bytes.
        segments: the oldest ones of the first partition that is not dropped whole; when there are
            more of them than these, what is left over is to be asked for again.
        over_bytes: by how much it is too much.
    """
    drop = []
    for place in sorted(partitions, key=lambda one: one.low):
        if place.bytes > over_bytes:
            break
        if place.bytes:
            drop.append(place)
            over_bytes -= place.bytes
    delete = []
    for one in sorted(segments, key=lambda one: (one.min_ts, one.id)):
        if over_bytes <= 0:
            break
        if not any(_holds(place, one) for place in drop):
            delete.append(one)
            over_bytes -= one.bytes
    return Plan(tuple(drop), tuple(delete))


def next_drop_ns(
    rules: Rules, partitions: Iterable[Partition], segments: Iterable[Kept], now_ns: int
) -> int | None:
    """Return when the first of these segments goes by its age; None when there is none."""
    places = sorted(partitions, key=lambda one: one.low)
    return min((_goes_ns(rules, places, one, now_ns) for one in segments), default=None)
