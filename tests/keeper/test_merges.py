"""Which segments are merged, and that merging changes no record."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import keeping
import msgspec
import numpy as np
import pytest
from builders import delivery, record
from hypothesis import given, settings
from hypothesis import strategies as st

from logweir.backends.keeper_store import SmallSegment
from logweir.core import beside, segment
from logweir.core import filter as segment_filter
from logweir.core.names import PipelineId, TenantId
from logweir.keeper import merges

PIPELINE = PipelineId(1)
TICK_S = 2


def small(number: int, n: int = 5, raw_bytes: int = 0, **changes) -> SmallSegment:
    """The segment that was flushed at a number of ticks, long ago."""
    at = number * TICK_S * 10**9
    fields = {"partition": 7, "pipeline": PIPELINE, "id": number, "min_ts": at, "max_ts": at + 1}
    fields |= {"n": n, "raw_bytes": raw_bytes or n * 500, "age_s": 3600.0}
    return SmallSegment(**(fields | changes))


# ---- which -------------------------------------------------------------------------------------


class Arrivals:
    """A store to which segments come every two seconds, and a keeper that looks every ten."""

    def __init__(self) -> None:
        self.live: dict[int, SmallSegment] = {}
        self.written_s: dict[int, int] = {}
        self.rewrites: dict[int, int] = {}
        self.records = 0
        self.rewritten = 0
        self.most_left = 0
        self._ids = itertools.count(1)

    def put(self, n: int, raw_bytes: int, min_ts: int, now_s: int, rewrites: int) -> None:
        made = small(0, n, raw_bytes, id=next(self._ids), min_ts=min_ts, max_ts=min_ts + 10**9)
        self.live[made.id] = made
        self.written_s[made.id] = now_s
        self.rewrites[made.id] = rewrites

    def run(self, sizes: Iterator[int], hours: float) -> None:
        for now_s in range(0, int(hours * 3600), TICK_S):
            n = next(sizes)
            self.records += n
            self.put(n, n * 500, now_s * 10**9, now_s, 0)
            if now_s % 10 == 0:
                self.look(now_s)

    def look(self, now_s: int) -> None:
        found = [
            msgspec.structs.replace(one, age_s=float(now_s - self.written_s[one.id]))
            for one in self.live.values()
            if one.n <= merges.MAX_SMALL_RECORDS
        ]
        groups = merges.plan(found)
        check(groups)
        for group in groups:
            self.merge(group, now_s)
        left = sum(1 for one in self.live.values() if one.n <= merges.MAX_SMALL_RECORDS)
        self.most_left = max(self.most_left, left)

    def merge(self, group: Sequence[SmallSegment], now_s: int) -> None:
        n = sum(one.n for one in group)
        self.rewritten += n
        rewrites = 1 + max(self.rewrites[one.id] for one in group)
        raw_bytes = sum(one.raw_bytes for one in group)
        self.put(n, raw_bytes, min(one.min_ts for one in group), now_s, rewrites)
        for one in group:
            del self.live[one.id]


def check(groups: Sequence[merges.Group]) -> None:
    """What holds of every plan."""
    members = [one.id for group in groups for one in group]
    assert len(members) == len(set(members))
    for group in groups:
        assert len(group) > 1
        n, raw_bytes = sum(one.n for one in group), sum(one.raw_bytes for one in group)
        assert n <= merges.MAX_RECORDS
        assert raw_bytes <= merges.MAX_RAW_BYTES
        assert len({(one.pipeline, one.partition) for one in group}) == 1
        assert len(group) <= merges.MAX_MEMBERS
        tiers = {merges.tier_of(one.n, one.raw_bytes) for one in group}
        assert merges.tier_of(n, raw_bytes) < min(tiers)
        assert [one.min_ts for one in group] == sorted(one.min_ts for one in group)
        assert all(one.age_s >= merges.MIN_AGE_S for one in group)


@pytest.mark.parametrize(
    ("sizes", "rewrites"),
    [
        pytest.param([5], 4, id="a trickle of five"),
        pytest.param([500], 2, id="five hundred"),
        pytest.param([16_000], 1, id="full flushes"),
        pytest.param([5, 500, 16_000], 4, id="all of them in turn"),
        pytest.param([1, 1, 1, 9000], 5, id="single ones among many"),
    ],
)
def test_hours_of_flushes_end_in_few_segments_and_few_rewrites(sizes, rewrites):
    store = Arrivals()

    store.run(itertools.cycle(sizes), hours=4)

    assert max(store.rewrites.values()) <= rewrites
    assert store.rewritten <= rewrites * store.records
    assert len(store.live) <= store.records / merges.MAX_SMALL_RECORDS + 36
    assert store.most_left <= 45


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 16_384))
def test_flushes_of_any_sizes_are_rewritten_a_few_times_only(seed, largest):
    chance = random.Random(seed)
    store = Arrivals()

    store.run(iter(lambda: chance.randint(1, largest), None), hours=1)

    assert max(store.rewrites.values()) <= 5
    assert len(store.live) <= store.records / merges.MAX_SMALL_RECORDS + 45


segments = st.builds(
    small,
    st.integers(0, 10**6),
    st.integers(1, 40_000),
    st.integers(1, 60 << 20),
    partition=st.integers(0, 1),
    pipeline=st.integers(1, 2),
    age_s=st.sampled_from([0.0, 4.9, 5.0, 100.0]),
)


@given(st.lists(segments, unique_by=lambda one: one.id, max_size=80))
def test_every_plan_keeps_its_bounds_whatever_there_is(found):
    check(merges.plan(found))


@given(
    st.lists(st.integers(1, 3000), min_size=2, max_size=60),
    st.randoms(use_true_random=False),
)
def test_a_group_leaves_no_neighbour_of_its_tier_out(sizes, chance):
    found = [small(number, n) for number, n in enumerate(sizes)]
    by_time = list(found)
    chance.shuffle(found)

    groups = merges.plan(found)

    for group in groups:
        first, last = by_time.index(group[0]), by_time.index(group[-1])
        tier = merges.tier_of(group[0].n, group[0].raw_bytes)
        between = [
            one for one in by_time[first : last + 1] if merges.tier_of(one.n, one.raw_bytes) == tier
        ]
        assert list(group) == between


def test_young_segments_are_left_for_the_next_look():
    found = [small(number, age_s=4.9) for number in range(100)]

    assert merges.plan(found) == []


def test_nine_of_a_kind_wait_for_the_tenth():
    found = [small(number, 4) for number in range(10)]

    assert merges.plan(found[:8]) == []
    assert merges.plan(found) == [tuple(found)]


def test_a_backlog_of_tiny_segments_is_merged_as_far_as_it_goes_in_one_step():
    found = [small(number, 20) for number in range(2000)]

    assert [len(group) for group in merges.plan(found)] == [1000, 1000]


def test_what_is_not_as_good_as_full_waits_for_more():
    found = [small(number, 10_000) for number in range(2)]

    assert merges.plan(found) == []


def test_two_full_flushes_make_a_segment():
    found = [small(number, 16_000) for number in range(3)]

    assert merges.plan(found) == [tuple(found[:2])]


def test_raw_bytes_bound_a_group_as_records_do():
    found = [small(number, 100, 20 << 20) for number in range(5)]

    assert merges.plan(found) == [tuple(found[:2]), tuple(found[2:4])]


@pytest.mark.parametrize("field", ["pipeline", "partition"])
def test_nothing_is_merged_across(field):
    found = [small(number, **{field: number % 4}) for number in range(24)]

    assert merges.plan(found) == []


# ---- how ---------------------------------------------------------------------------------------


def made(*of: dict, raw_bytes: int = 100) -> segment.Segment:
    """A segment of these records, as a collector writes it."""
    found = delivery(TenantId("acme"), PIPELINE, [record(**one) for one in of])
    return segment.encode(PIPELINE, found.records, raw_bytes)


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
one_record = st.fixed_dictionaries(
    {"message": text.filter(str.strip)},
    optional={
        "service": st.sampled_from(["shop", "cart"]),
        "host": st.sampled_from(["a", "b", "c"]),
        "trace_id": st.sampled_from(["", "0af7651916cd43dd8448eb211c80319c", "abc"]),
        "metadata": st.dictionaries(st.text("abc", min_size=1), text, max_size=3),
        "timestamp": st.integers(1_790_000_000, 1_790_001_000),
    },
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(one_record, min_size=1, max_size=6), min_size=2, max_size=5))
def test_merging_changes_no_record(groups):
    found = [made(*group) for group in groups]

    merged = merges.combine(found)

    assert keeping.texts(merged) == [one for part in found for one in keeping.texts(part)]
    assert merged.n == sum(len(group) for group in groups)
    assert merged.raw_bytes == 100 * len(groups)
    assert merged.min_ts == min(part.min_ts for part in found)
    assert merged.max_ts == max(part.max_ts for part in found)


def test_counts_of_a_merged_segment_are_the_sums_of_its_parts():
    found = [made({"message": f"m{number}"}, {"message": "x"}) for number in range(4)]

    merged = merges.combine(found)
    counts = beside.decode_counts(merged.counts, merged.codec)

    assert counts.count.sum() == 8


def test_the_filter_of_a_merged_segment_finds_what_each_part_holds():
    found = [made({"message": f"order ord-{number}00815 done"}) for number in range(20)]

    merged = merges.combine(found)

    for number in range(20):
        keys = segment_filter.literal_keys(f" ord-{number}00815 ".encode())
        assert len(keys)
        assert all(segment_filter.has(merged.filter, int(key)) for key in keys)
    strange = segment_filter.literal_keys(b" ord-999999 ")
    assert not all(segment_filter.has(merged.filter, int(key)) for key in strange)


def flipped(one: segment.Segment) -> segment.Segment:
    body = bytearray(one.body)
    body[len(body) // 2] ^= 1
    return msgspec.structs.replace(one, body=bytes(body))


def without_a_text(one: segment.Segment) -> segment.Segment:
    """A sound encoding of columns that are not: a message less than there are records."""
    found = segment.decode(one)
    short = msgspec.structs.replace(found, message=found.message.rpartition(b"\0")[0])
    return segment.encode(PIPELINE, short, 1)


def with_a_stray_label_set(one: segment.Segment) -> segment.Segment:
    found = segment.decode(one)
    stray = msgspec.structs.replace(found, label_set=np.full(found.n, 9, np.uint32))
    return segment.encode(PIPELINE, stray, 1)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(flipped, id="a bit of the body"),
        pytest.param(lambda one: msgspec.structs.replace(one, body=one.body[:-1]), id="cut short"),
        pytest.param(lambda one: msgspec.structs.replace(one, layout=b""), id="no layout"),
        pytest.param(lambda one: msgspec.structs.replace(one, layout=None), id="layout is null"),
        pytest.param(lambda one: msgspec.structs.replace(one, label_sets=b"{"), id="label sets"),
        pytest.param(lambda one: msgspec.structs.replace(one, n=one.n + 1), id="another count"),
        pytest.param(lambda one: msgspec.structs.replace(one, min_ts=1), id="another time"),
        pytest.param(lambda one: msgspec.structs.replace(one, codec=99), id="another version"),
        pytest.param(without_a_text, id="a text is missing"),
        pytest.param(with_a_stray_label_set, id="a label set is missing"),
    ],
)
def test_a_damaged_segment_is_named_and_nothing_merged(damage):
    good = made({"message": "a"}, {"message": "b"}, {"message": "c"})

    with pytest.raises(merges.DamagedSegmentsError) as caught:
        merges.combine([good, damage(good), good])

    assert set(caught.value.reasons) == {1}


def test_a_merge_that_does_not_come_out_as_it_went_in_is_refused(monkeypatch):
    good = made({"message": "a"})
    monkeypatch.setattr(segment, "merge", lambda pipeline, found: made({"message": "b"}))

    with pytest.raises(merges.DamagedSegmentsError) as caught:
        merges.combine([good, good])

    assert set(caught.value.reasons) == {0, 1}
