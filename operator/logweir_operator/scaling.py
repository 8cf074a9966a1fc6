"""Decide how many collectors a pipeline has, from what waits in its journal. Pure.

    Sample -> learn (rates) -> wish (how many would do) -> windows and rates of change -> Decision

How many would do is the greatest of three wishes: one collector for each `targetBacklogBytes`; so
many that they keep up and drain the backlog within `targetDrainSeconds`; and while records wait
longer than `slo.queryableWithinSeconds`, so many that the backlog is gone as soon as new collectors
can help. What is not known is never taken for nothing: a bad sample shrinks nothing, nor does a
start of the operator, for as long as the window of scaling down is.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import msgspec

from logweir.core.backlog import Sample
from logweir_operator.model import Autoscaling

LOOK_S: Final = 15.0
ZERO_LOOK_S: Final = 2.0
"""How often a pipeline is looked at, and one that has no collectors."""

SMOOTHING_S: Final = 60.0
"""Time constant of the rates."""

SLOWING_S: Final = 300.0
"""Time constant with which a collector is found slower: a store that is slow for a moment is not
answered by many collectors, for which it would be slower still."""

UTILISATION: Final = 0.8
"""How busy collectors should be: what is left over takes up noise."""

REACTION_S: Final = 30.0
"""Until a new collector works. A backlog that is gone sooner without it needs none."""

STALE_S: Final = 45.0
FALLBACK_S: Final = 180.0
"""Without a good sample for so long, `fallbackReplicas` run."""

MINUTE_S: Final = 60.0
STILL_S: Final = 30.0
"""Collectors that have stored nothing for so long are stuck: more of them would be, too."""

LONG_S: Final = 600.0
"""Wishing for more than there may be for so long is worth a warning."""

CONNECTIONS: Final = 1
"""That a collector takes of its tenant's writer login."""

CONNECTION_LIMIT: Final = "the tenant's postgres.connectionLimit"

Reason = Literal[
    "Sampling", "ScaledToZero", "AtMaximum", "MetricsUnavailable", "ManagedByKeda", "Manual"
]


class Point(msgspec.Struct, frozen=True):
    """A number of collectors at a time."""

    at_s: float
    count: int


class Memory(msgspec.Struct, frozen=True):
    """What is remembered of a pipeline between two decisions. Rates are bytes a second.

    Attributes:
        begun_at_s: when it was looked at for the first time; None: never.
        sample: the last good one, and how many collectors were ready then.
        arrival: what comes in; None: not known yet.
        drain: what all collectors store.
        capacity: what one collector stores when there is enough to do.
        wishes: how many would have done, in the windows of scaling up and down.
        counts: how many there were in the last minute.
        worked_at_s: when there was last something to do.
        drained_at_s: when something was last stored, or could not have been.
        maximum_since_s: since when more would be needed than there may be; None: they are not.
        late_looks: how many samples in a row have found a record that waits for longer than the
            goal.
    """

    begun_at_s: float | None = None
    sample: Sample | None = None
    ready: int = 0
    arrival: float | None = None
    drain: float | None = None
    capacity: float | None = None
    wishes: tuple[Point, ...] = ()
    counts: tuple[Point, ...] = ()
    worked_at_s: float = 0.0
    drained_at_s: float = 0.0
    maximum_since_s: float | None = None
    late_looks: int = 0


class Decision(msgspec.Struct, frozen=True):
    """How many collectors there should be, and why.

    `needs_at_s` is when to look again; `is_stuck_at_maximum`: for long more were needed.
    """

    replicas: int
    reason: Reason
    message: str
    memory: Memory
    needs_at_s: float
    is_stuck_at_maximum: bool = False


class _Wish(msgspec.Struct, frozen=True):
    """How many collectors would do, as a fraction, and what asks for them."""

    count: float
    asked_by: str


def budget(connection_limit: int, others: int) -> int:
    """Return how many collectors a pipeline may have for its tenant's connections; at least one.

    A tenth of the connections is left to collectors that are being replaced.

    Args:
        connection_limit: of each of the tenant's logins.
        others: collectors that the tenant's other pipelines have.
    """
    usable = connection_limit - max(1, connection_limit // 10)
    return max(1, usable // CONNECTIONS - others)


def decide(
    spec: Autoscaling,
    within_s: float,
    sample: Sample | None,
    memory: Memory,
    current: int,
    ready: int,
    now_s: float,
    *,
    manual: int | None = None,
    most: int | None = None,
    most_by: str = CONNECTION_LIMIT,
) -> Decision:
    """Return how many collectors a pipeline should have from now on.

    Args:
        spec: what its resource says.
        within_s: its goal: records can be found so soon.
        sample: of its journal; None: the journal could not be asked.
        memory: that the last decision returned; a new one after a start of the program.
        current: how many collectors are wanted now.
        ready: how many of them are ready.
        now_s: of a clock that never goes back, the sample's.
        manual: `collector.replicas`, for the driver None.
        most: how many there may be at most, whatever the resource says; None: any number.
        most_by: in words, what allows no more than `most`.
    """
    memory = _remembered(memory, current, now_s)
    is_good = sample is not None and now_s - sample.at_s <= STALE_S
    if sample is not None and is_good:
        memory = _learned(memory, sample, ready, within_s, now_s)
    if spec.driver == "KEDA":
        return _decision(current, "ManagedByKeda", "KEDA scales the collectors.", memory, now_s)
    high = spec.max_replicas if most is None else min(spec.max_replicas, most)
    if spec.driver == "None":
        wanted = current if manual is None else manual
        allowed = wanted if most is None else min(wanted, most)
        return _manual(wanted, allowed, most_by, memory, now_s)
    if sample is None or not is_good:
        return _held(spec, memory, current, high, now_s)
    wish = _wish(spec, within_s, sample, memory, current)
    count = _whole(wish.count, current, spec.tolerance_percent)
    if wish.count < 1 and memory.worked_at_s < now_s:
        count = 0  # what is left of the smoothed arrival asks for nobody
    is_stuck = current > 0 and now_s - memory.drained_at_s >= STILL_S
    if is_stuck and count > current:
        count = current
    low = spec.min_replicas or int(not sample.is_empty)
    wanted = max(count, low)
    raw = min(wanted, high)
    memory = _wished(memory, raw, spec, now_s)
    replicas = min(max(_steady(spec, memory, raw, current, now_s), low), high)
    if replicas == 0 and current > 0 and now_s - memory.worked_at_s < spec.idle_cooldown_seconds:
        replicas = 1
    since_s = memory.maximum_since_s
    since_s = (now_s if since_s is None else since_s) if wanted > high else None
    memory = msgspec.structs.replace(memory, maximum_since_s=since_s)
    reason: Reason = "Sampling" if replicas else "ScaledToZero"
    message = f"{_collectors(replicas)}, as {wish.asked_by} asks for."
    if not replicas:
        message = "Nothing waits; the first record starts a collector."
    elif is_stuck:
        message = (
            f"{_collectors(replicas)}: nothing was stored for {STILL_S:.0f} s, more would not help."
        )
    elif since_s is not None and replicas == high:
        reason, message = (
            "AtMaximum",
            _limited(wanted, high, "maxReplicas" if high == spec.max_replicas else most_by),
        )
    return _decision(replicas, reason, message, memory, now_s)


Fresh = tuple[Literal["True", "False", "Unknown"], Literal["WithinGoal", "Behind", "Unknown"], str]


def fresh(within_s: float, sample: Sample | None, memory: Memory) -> Fresh:
    """Return status, reason and message of the condition Fresh: whether the goal is held.

    Args:
        within_s: the goal.
        sample: the one that `memory` was just given; None: there is none.
        memory: of the last decision.
    """
    if sample is None:
        return "Unknown", "Unknown", "The journal could not be asked what waits."
    if memory.late_looks < 2:
        return "True", "WithinGoal", f"Records can be found within {within_s:g} s."
    return (
        "False",
        "Behind",
        f"Records wait for longer than the goal of {within_s:g} s before they can be found.",
    )


def drain_text(sample: Sample, memory: Memory) -> str:
    """Return in words when the backlog will be gone: "empty", "in 40 s", "growing", "unknown"."""
    if sample.is_empty:
        return "empty"
    if memory.drain is None or memory.arrival is None:
        return "unknown"
    # What one second brings is always under way.
    if sample.backlog_bytes <= memory.arrival:
        return "keeping up"
    if memory.drain <= memory.arrival:
        return "growing"
    return f"in {sample.backlog_bytes / (memory.drain - memory.arrival):.0f} s"


# ---- what is learnt ----------------------------------------------------------------------------


def _remembered(memory: Memory, current: int, now_s: float) -> Memory:
    """Return the memory with the number of now. After a start, or when nobody looked for long, it
    begins with that number, so that nothing shrinks before the window has passed."""
    is_new = memory.begun_at_s is None or now_s - memory.counts[-1].at_s > MINUTE_S
    point = Point(now_s, current)
    if is_new:
        return msgspec.structs.replace(
            memory,
            begun_at_s=now_s,
            wishes=(point,),
            counts=(point,),
            worked_at_s=now_s,
            drained_at_s=now_s,
            maximum_since_s=None,
            late_looks=0,
        )
    return msgspec.structs.replace(memory, counts=_since(memory.counts, now_s - MINUTE_S, point))


def _since(points: tuple[Point, ...], at_s: float, new: Point) -> tuple[Point, ...]:
    return (*(one for one in points if one.at_s > at_s), new)


def _learned(memory: Memory, sample: Sample, ready: int, within_s: float, now_s: float) -> Memory:
    """Return the memory after a good sample."""
    before = memory.sample
    is_late = sample.oldest_age_s is not None and sample.oldest_age_s > within_s
    if before is not None and sample.at_s <= before.at_s:
        return memory  # it is the same one
    seen = msgspec.structs.replace(
        memory, sample=sample, ready=ready, late_looks=memory.late_looks + 1 if is_late else 0
    )
    arrived = sample.appended_bytes - before.appended_bytes if before else 0
    stored = sample.stored_bytes - before.stored_bytes if before else 0
    if not sample.is_empty or arrived:
        seen = msgspec.structs.replace(seen, worked_at_s=now_s)
    if sample.is_empty or stored or not ready:
        seen = msgspec.structs.replace(seen, drained_at_s=now_s)
    if before is None or arrived < 0 or stored < 0:  # the journal has begun anew
        return seen
    passed_s = sample.at_s - before.at_s
    capacity = memory.capacity
    if stored and ready and ready == memory.ready:
        each = stored / passed_s / ready
        # Idle collectors show what arrives, not what they could do: at least that.
        if capacity is not None and each > capacity:
            capacity = _smooth(capacity, each, passed_s)
        elif _is_busy(before, within_s) and _is_busy(sample, within_s):
            capacity = _smooth(capacity, each, passed_s, SLOWING_S)
    return msgspec.structs.replace(
        seen,
        arrival=_smooth(memory.arrival, arrived / passed_s, passed_s),
        drain=_smooth(memory.drain, stored / passed_s, passed_s),
        capacity=capacity,
    )


def _smooth(
    before: float | None, now: float, passed_s: float, constant_s: float = SMOOTHING_S
) -> float:
    """Return a rate after `passed_s` in which it was `now`."""
    if before is None:
        return now
    return before + (1 - math.exp(-passed_s / constant_s)) * (now - before)


def _is_busy(sample: Sample, within_s: float) -> bool:
    """Whether collectors have more to do than they can: entries wait that none has taken yet, and
    for longer than a batch takes."""
    waits_s = sample.oldest_age_s or 0.0
    return sample.entries > sample.pending and waits_s > min(20.0, max(1.0, within_s))


# ---- what would do -----------------------------------------------------------------------------


def _wish(
    spec: Autoscaling, within_s: float, sample: Sample, memory: Memory, current: int
) -> _Wish:
    """Return the greatest of all wishes."""
    backlog = max(0, sample.backlog_bytes)
    wishes = [_Wish(backlog / spec.target_backlog_bytes, "the backlog")]
    arrival = memory.arrival or 0.0

    def drained(in_s: float) -> float:
        """How many store what arrives and, in so many seconds, the backlog."""
        assert memory.capacity  # noqa: S101 - asked only when it is known
        return (arrival + backlog / in_s) / (memory.capacity * UTILISATION)

    if memory.capacity:
        wait_s = backlog / (memory.capacity * max(1, memory.ready))
        wishes.append(_Wish(drained(spec.target_drain_seconds), "what arrives"))
        if wait_s > within_s or memory.late_looks:
            wishes.append(_Wish(drained(max(within_s, REACTION_S)), f"the goal of {within_s:g} s"))
    elif memory.late_looks > 1 and 0 < current <= memory.ready and _is_busy(sample, within_s):
        wishes.append(_Wish(current + 1, f"the goal of {within_s:g} s"))
    return max(wishes, key=lambda one: one.count)


def _whole(wish: float, current: int, tolerance_percent: int) -> int:
    """Return a number of collectors: the current one when that is near enough."""
    if current > 0 and abs(wish / current - 1) <= tolerance_percent / 100:
        return current
    return math.ceil(wish)


def _wished(memory: Memory, raw: int, spec: Autoscaling, now_s: float) -> Memory:
    longest_s = max(
        spec.scale_up.stabilization_window_seconds, spec.scale_down.stabilization_window_seconds
    )
    return msgspec.structs.replace(
        memory, wishes=_since(memory.wishes, now_s - longest_s, Point(now_s, raw))
    )


def _steady(spec: Autoscaling, memory: Memory, raw: int, current: int, now_s: float) -> int:
    """Return the number that windows and rates of change allow now."""

    def window(seconds: float) -> list[int]:
        return [raw, *(one.count for one in memory.wishes if one.at_s > now_s - seconds)]

    up = min(window(spec.scale_up.stabilization_window_seconds))
    down = max(window(spec.scale_down.stabilization_window_seconds))
    counts = [one.count for one in memory.counts]
    if current < up:
        least = min(counts)
        percent = 100 + spec.scale_up.max_percent_per_minute
        step = max(least + spec.scale_up.max_pods_per_minute, math.ceil(least * percent / 100))
        return max(current, min(up, step))
    if current > down:
        percent = 100 - spec.scale_down.max_percent_per_minute
        return min(current, max(down, max(counts) * percent // 100))
    return current


# ---- decisions ---------------------------------------------------------------------------------


def _manual(wanted: int, allowed: int, most_by: str, memory: Memory, now_s: float) -> Decision:
    message = f"{_collectors(allowed)}, as spec.collector.replicas says."
    if allowed < wanted:
        message = _limited(wanted, allowed, most_by)
    return _decision(allowed, "Manual", message, memory, now_s)


def _held(spec: Autoscaling, memory: Memory, current: int, high: int, now_s: float) -> Decision:
    """Without a good sample nothing shrinks; after a while fallbackReplicas run."""
    seen_s = memory.sample.at_s if memory.sample else -math.inf
    away_s = now_s - max(seen_s, memory.begun_at_s or 0.0)
    if away_s > STALE_S:  # so that nothing shrinks at once when it is back
        memory = _wished(memory, current, spec, now_s)
    least, message = spec.min_replicas, "The journal could not be asked; nothing is changed."
    if away_s >= FALLBACK_S and spec.fallback_replicas is not None:
        least = max(least, spec.fallback_replicas)
        message = "The journal could not be asked for long; at least fallbackReplicas run."
    return _decision(max(current, min(least, high)), "MetricsUnavailable", message, memory, now_s)


def _limited(wanted: int, high: int, by: str) -> str:
    return f"{_collectors(wanted)} would do, but {by} allows {high}."


def _collectors(count: int) -> str:
    return "1 collector" if count == 1 else f"{count} collectors"


def _decision(
    replicas: int, reason: Reason, message: str, memory: Memory, now_s: float
) -> Decision:
    since_s = memory.maximum_since_s
    return Decision(
        replicas=replicas,
        reason=reason,
        message=message,
        memory=memory,
        needs_at_s=now_s + (LOOK_S if replicas else ZERO_LOOK_S),
        is_stuck_at_maximum=since_s is not None and now_s - since_s >= LONG_S,
    )
