"""Merging and its schedule over any history: all is done in time, and comes to rest."""

from __future__ import annotations

import itertools
import random
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from logweir.backends.keeper_store import SmallSegment
from logweir.core.names import PipelineId
from logweir.keeper import duties, merges
from logweir.keeper.duties import Standing

# ---- merges ----------------------------------------------------------------------------------


@st.composite
def stores(draw: st.DrawFn) -> list[SmallSegment]:
    """Segments of two pipelines in two partitions, of any size and time."""
    chance: random.Random = draw(st.randoms(use_true_random=False))
    return [
        SmallSegment(
            partition=chance.randrange(2),
            pipeline=PipelineId(chance.randrange(1, 3)),
            id=number,
            min_ts=(at := chance.randrange(10**12)),
            max_ts=at + 10,
            n=(n := chance.randint(1, chance.choice([20, 3000, 40_000]))),
            raw_bytes=n * chance.choice([1, 500, 20_000]),
            age_s=60.0,
        )
        for number in range(draw(st.integers(1, 250)))
    ]


def merged(group: merges.Group, number: int) -> SmallSegment:
    return msgspec.structs.replace(
        group[0],
        id=number,
        min_ts=min(one.min_ts for one in group),
        max_ts=max(one.max_ts for one in group),
        n=sum(one.n for one in group),
        raw_bytes=sum(one.raw_bytes for one in group),
    )


def sums(of: list[SmallSegment]) -> dict[tuple[int, int], tuple[int, int]]:
    """Records and bytes by pipeline and partition."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for one in of:
        n, raw_bytes = found.get((one.pipeline, one.partition), (0, 0))
        found[one.pipeline, one.partition] = (n + one.n, raw_bytes + one.raw_bytes)
    return found


@settings(max_examples=150, deadline=None)
@given(stores())
def test_merging_comes_to_rest_with_every_record_and_few_segments_left(store):
    live = {one.id: one for one in store}
    before = sums(store)
    rewrites = dict.fromkeys(live, 0)
    for number in itertools.count(len(store)):
        groups = merges.plan(live.values())
        if not groups:
            break
        assert number < len(store) + 20, "a few rounds"
        members = [one.id for group in groups for one in group]
        assert len(members) == len(set(members)), "no segment twice"
        for at, group in enumerate(groups):
            made = merged(group, number * 1000 + at)
            assert made.n <= merges.MAX_RECORDS
            assert made.raw_bytes <= merges.MAX_RAW_BYTES
            rewrites[made.id] = 1 + max(rewrites[one.id] for one in group)
            for one in group:
                del live[one.id]
            live[made.id] = made

    assert sums(list(live.values())) == before
    assert max(rewrites.values()) <= 5, "a record is written again a few times only"
    left: dict[tuple[int, int, int], list[SmallSegment]] = {}
    for one in live.values():
        tier = merges.tier_of(one.n, one.raw_bytes)
        left.setdefault((one.pipeline, one.partition, tier), []).append(one)
    for (_, _, tier), found in left.items():
        if tier >= 0:
            assert len(found) < 2 * merges.TIER


# ---- duties ----------------------------------------------------------------------------------

TICK_S = 5.0


class Keeping(RuleBasedStateMachine):
    """One tenant and one keeper: records come or not, visits end well, half, or badly."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.standing = Standing()
        self.inserted = 0
        self.last: dict[str, float] = {}
        self.visits: list[float] = []

    @initialize(now_s=st.sampled_from([0.0, 1e6]))
    def begin(self, now_s: float) -> None:
        self.now_s = now_s
        self.last = dict.fromkeys(("upkeep", "sweep", "look"), now_s)

    @rule(ticks=st.integers(1, 900), is_written=st.booleans(), data=st.data())
    def pass_time(self, ticks: int, is_written: bool, data: Any) -> None:
        endings = data.draw(
            st.lists(st.sampled_from(["done"] * 6 + ["half", "refused", "failed"]), min_size=1)
        )
        ending = itertools.cycle(endings)
        for _ in range(ticks):
            self.now_s += TICK_S
            self.inserted += is_written
            self.standing = duties.seen(self.standing, self.inserted, self.now_s)
            work = duties.due(self.standing, self.now_s)
            if work:
                self.visit(work, next(ending))

    def visit(self, work: duties.Work, ending: str) -> None:
        if ending == "refused":
            self.standing = duties.refused(self.standing, self.now_s)
            return
        if ending == "failed":
            self.standing = duties.failed(self.standing, self.now_s)
            return
        self.visits.append(self.now_s)
        self.standing = duties.done(self.standing, work, self.now_s, is_finished=ending == "done")
        if ending == "done":
            self.last[work] = self.now_s
            if work != "upkeep":
                self.last["look"] = self.now_s

    @rule(times=st.integers(1, 12))
    def fail(self, times: int) -> None:
        """Visits fail one after the other; each waits longer, and never for too long."""
        for _ in range(times):
            self.now_s = max(self.now_s, self.standing.not_before_s)
            if work := duties.due(self.standing, self.now_s):
                self.visit(work, "failed")
                self.waits_are_bounded()

    @rule()
    def calm_down(self) -> None:
        """An hour without trouble: everything is done in it."""
        begin_s = self.now_s
        while self.now_s < begin_s + duties.UPKEEP_S + duties.BACKOFF_S[1] + 2 * TICK_S:
            self.now_s += TICK_S
            work = duties.due(self.standing, self.now_s)
            if work:
                self.visit(work, "done")
        assert all(at_s > begin_s for at_s in self.last.values())
        quiet_s = duties.QUIET_S + TICK_S
        assert self.now_s - self.last["look"] <= quiet_s
        looks = [at for at in self.visits if at > self.now_s - 1800]
        assert len(looks) <= 1800 / duties.QUIET_S + 3, "a quiet tenant costs little"

    @rule()
    def write_and_wait(self) -> None:
        """What is written is looked at soon after it is old enough, and then again and again."""
        self.calm_down()
        self.inserted += 1
        self.now_s += TICK_S
        self.standing = duties.seen(self.standing, self.inserted, self.now_s)
        written_s = self.now_s
        for _ in range(round((duties.SETTLE_S + duties.LOOK_S + TICK_S) / TICK_S)):
            self.now_s += TICK_S
            work = duties.due(self.standing, self.now_s)
            if work:
                self.visit(work, "done")
        assert any(at >= written_s + merges.MIN_AGE_S for at in self.visits)

    @invariant()
    def waits_are_bounded(self) -> None:
        longest_s = max(duties.BACKOFF_S[1], duties.REFUSED_S)
        assert self.standing.not_before_s <= self.now_s + longest_s


Keeping.TestCase.settings = settings(max_examples=40, stateful_step_count=12, deadline=None)
test_whatever_happens_the_work_is_done = Keeping.TestCase
