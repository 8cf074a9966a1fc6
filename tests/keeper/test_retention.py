"""Which partitions and segments go, over any store: no record too early, none much too late."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logweir.backends.retention_store import Kept, Partition
from logweir.core.moments import NS_PER_DAY
from logweir.core.names import PipelineId
from logweir.keeper import retention
from logweir.keeper.retention import Rules

DAY = NS_PER_DAY
WEB, AUDIT = PipelineId(1), PipelineId(2)
NOW = 20_000 * DAY


class Store:
    """Partitions of any width, and segments in them."""

    def __init__(self, chance: random.Random) -> None:
        at = NOW - chance.randint(1, 120) * DAY
        self.partitions: list[Partition] = []
        self.segments: list[Kept] = []
        while at < NOW + DAY:
            end = at + chance.choice([1, 1, 7, 30]) * DAY
            sizes = [self.add(chance, at, end) for _ in range(chance.randint(0, 6))]
            self.partitions.append(Partition(at, end, sum(sizes)))
            at = end + chance.choice([0, 0, DAY])
        chance.shuffle(self.partitions)
        chance.shuffle(self.segments)

    def add(self, chance: random.Random, low: int, high: int) -> int:
        first = chance.randrange(low, high)
        last = min(high - 1, first + chance.choice([0, 10**9, 2 * DAY]))
        size = chance.randint(1, 100)
        self.segments.append(
            Kept(chance.choice([WEB, AUDIT]), len(self.segments), first, last, size)
        )
        return size

    def gone(self, plan: retention.Plan) -> list[Kept]:
        """Segments that a plan lets go."""
        dropped = [one for place in plan.drop for one in self.segments if inside(place, one)]
        return [*dropped, *plan.delete]


def inside(place: Partition, one: Kept) -> bool:
    return place.low <= one.min_ts < place.high


stores = st.randoms(use_true_random=False).map(Store)
rules_of = st.builds(
    lambda days, audit: Rules(days, {WEB: days, AUDIT: audit}),
    st.integers(1, 90),
    st.integers(1, 90),
)


@settings(max_examples=300, deadline=None)
@given(stores, rules_of)
def test_nothing_goes_before_it_has_expired_and_what_stays_goes_with_its_partition_soon(
    store, rules
):
    plan = retention.by_time(rules, store.partitions, store.segments, NOW)

    gone = store.gone(plan)
    assert len({one.id for one in gone}) == len(gone), "each goes once"
    for one in gone:
        assert one.max_ts < NOW - rules.kept_ns(one.pipeline)
    for one in store.segments:
        kept_ns = rules.kept_ns(one.pipeline)
        [place] = [place for place in store.partitions if inside(place, one)]
        waits_ns = place.high + rules.longest_ns + retention.GRACE_NS - NOW
        assert one in gone or one.max_ts >= NOW - kept_ns or waits_ns <= kept_ns // 4
    assert all(place.high <= NOW - rules.longest_ns - retention.GRACE_NS for place in plan.drop)


@settings(max_examples=300, deadline=None)
@given(stores, rules_of)
def test_the_next_drop_is_when_the_first_record_goes_by_its_age(store, rules):
    next_ns = retention.next_drop_ns(rules, store.partitions, store.segments, NOW)

    def gone(at_ns: int) -> list[Kept]:
        return store.gone(retention.by_time(rules, store.partitions, store.segments, at_ns))

    if next_ns is None:
        assert not store.segments
    else:
        assert next_ns >= NOW
        assert gone(next_ns)
        assert next_ns == NOW or not gone(next_ns - 1)


@settings(max_examples=300, deadline=None)
@given(stores, st.floats(0, 1.2))
def test_over_the_bytes_the_oldest_go_and_no_more_than_needed(store, part):
    whole = sum(one.bytes for one in store.segments)
    over = int(whole * part)

    plan = retention.by_bytes(store.partitions, store.segments, over)

    gone = store.gone(plan)
    order = [place.low for place in plan.drop]
    assert order == sorted(order)
    assert sum(one.bytes for one in gone) >= min(over, whole)
    if plan.delete:
        assert sum(one.bytes for one in gone) - plan.delete[-1].bytes < over
    left = [one for one in store.segments if one not in gone]
    if gone and left:
        assert max(one.min_ts for one in gone) <= min(one.min_ts for one in left)
    assert gone or over <= 0 or not store.segments


def kept(days_old: float, pipeline: PipelineId = WEB) -> Kept:
    at = NOW - int(days_old * DAY)
    return Kept(pipeline, 1, at, at, 10)


@pytest.mark.parametrize(
    ("rules", "partition", "one", "goes"),
    [
        pytest.param(Rules(30), (31.5, 30.5), kept(31), "drop", id="its partition is over"),
        pytest.param(Rules(30), (37, 30), kept(31), "", id="a partition that is over just now"),
        pytest.param(Rules(30), (37, 23), kept(31), "", id="its partition goes in a week"),
        pytest.param(Rules(30), (37, 20), kept(31), "delete", id="its partition goes much later"),
        pytest.param(
            Rules(30, {AUDIT: 7}), (9, 8), kept(8, AUDIT), "delete", id="its pipeline keeps less"
        ),
        pytest.param(
            Rules(7, {AUDIT: 30}), (9.5, 8.5), kept(9, AUDIT), "drop", id="never more than all"
        ),
        pytest.param(Rules(30), (31, 29), kept(29.9), "", id="not expired"),
    ],
)
def test_what_has_expired_goes_with_its_partition_if_that_is_soon(rules, partition, one, goes):
    begin, end = partition
    place = Partition(NOW - int(begin * DAY), NOW - int(end * DAY))

    plan = retention.by_time(rules, [place], [one], NOW)

    assert (plan.drop == (place,), plan.delete == (one,)) == (goes == "drop", goes == "delete")
