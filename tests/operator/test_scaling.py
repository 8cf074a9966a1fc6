"""How many collectors a pipeline has: rules one by one, and laws that hold whatever comes."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from logweir.core.backlog import Sample
from logweir_operator import scaling
from logweir_operator.model import Autoscaling, ScaleDown, ScaleUp
from logweir_operator.scaling import Memory

MIB = 1 << 20
SPEC = Autoscaling()
ZERO = Autoscaling(min_replicas=0)


def waiting(at_s: float, backlog: int = 10 * MIB, **rest) -> Sample:
    values = {"entries": 100, "pending": 0, "oldest_age_s": 1.0, "appended_bytes": 1 << 40}
    return Sample(at_s=at_s, backlog_bytes=backlog, **(values | rest))


def empty(at_s: float, **rest) -> Sample:
    return Sample(at_s=at_s, **rest)


class Story:
    """Looks one after the other, each with what it has decided."""

    def __init__(self, spec=SPEC, within_s=2.0, current=1, memory=None, **more) -> None:
        self.spec, self.within_s, self.current, self.more = spec, within_s, current, more
        self.memory = memory or Memory()

    def look(self, now_s: float, sample: Sample | None, ready: int | None = None):
        decision = scaling.decide(
            self.spec,
            self.within_s,
            sample,
            self.memory,
            self.current,
            self.current if ready is None else ready,
            now_s,
            **self.more,
        )
        self.memory, self.current = decision.memory, decision.replicas
        return decision


# ---- rules -------------------------------------------------------------------------------------


def test_one_collector_for_each_target_of_backlog():
    decision = Story().look(0, waiting(0, 70 * MIB))
    assert (decision.replicas, decision.reason) == (5, "Sampling")
    assert decision.message == "5 collectors, as the backlog asks for."


def test_what_arrives_asks_for_as_many_as_keep_up_and_drain_in_time():
    memory = Memory(arrival=8.0 * MIB, capacity=4.0 * MIB)
    spec = replace(SPEC, target_backlog_bytes=1 << 40)

    decision = Story(spec, 3600, memory=memory).look(0, waiting(0, 480 * MIB))

    assert decision.replicas == 4  # (8 + 480 / 120) / (4 * 0.8) = 3.75
    assert decision.message == "4 collectors, as what arrives asks for."


def test_a_missed_goal_asks_for_as_many_as_drain_while_new_collectors_start():
    memory = Memory(arrival=8.0 * MIB, capacity=4.0 * MIB)
    spec = replace(SPEC, target_backlog_bytes=1 << 40)

    decision = Story(spec, 2.0, memory=memory).look(0, waiting(0, 480 * MIB))

    assert decision.replicas == 8  # (8 + 480 / 30) / (4 * 0.8) = 7.5
    assert decision.message == "8 collectors, as the goal of 2 s asks for."


def test_an_old_record_asks_for_more_when_nothing_else_is_known():
    story = Story(within_s=5.0)
    counts = [story.look(at_s, waiting(at_s, MIB, oldest_age_s=60.0)).replicas for at_s in (0, 15)]
    assert counts == [1, 2]


def test_an_old_record_asks_for_no_more_while_collectors_start():
    story = Story(within_s=5.0)
    counts = [
        story.look(at_s, waiting(at_s, MIB, oldest_age_s=60.0), ready=0).replicas
        for at_s in (0, 15, 30)
    ]
    assert counts == [1, 1, 1]


def test_an_old_record_that_a_dead_collector_holds_asks_for_no_more():
    story = Story(within_s=5.0)
    held = [waiting(at_s, MIB, pending=100, oldest_age_s=60.0) for at_s in (0, 15, 30)]
    assert [story.look(one.at_s, one).replicas for one in held] == [1, 1, 1]


@pytest.mark.parametrize(
    ("age_s", "ready", "stored", "capacity"),
    [
        pytest.param(60, 2, 30 * MIB, MIB, id="there was enough to do"),
        pytest.param(0.5, 2, 30 * MIB, None, id="nothing waited for long"),
        pytest.param(60, 1, 30 * MIB, None, id="others were ready"),
        pytest.param(60, 2, 0, None, id="nothing was stored"),
    ],
)
def test_what_a_collector_can_do_is_learnt_only_when_all_had_enough_to_do(
    age_s, ready, stored, capacity
):
    story = Story(current=2)
    story.look(0, waiting(0, oldest_age_s=60), ready=2)
    story.current = 2
    story.look(15, waiting(15, oldest_age_s=age_s, stored_bytes=stored), ready=ready)
    assert story.memory.capacity == capacity


def test_idle_collectors_show_what_they_can_at_least():
    story = Story(memory=Memory(capacity=1.0 * MIB))
    story.look(0, empty(0))
    story.look(60, empty(60, appended_bytes=600 * MIB, stored_bytes=600 * MIB))
    assert story.memory.capacity == pytest.approx(6.7 * MIB, rel=0.01)


def test_a_store_that_is_slow_for_a_moment_makes_no_slow_collectors():
    story = Story(memory=Memory(capacity=4.0 * MIB), current=1)
    story.look(0, waiting(0, oldest_age_s=60))
    story.current = 1
    story.look(15, waiting(15, oldest_age_s=60, stored_bytes=15 * MIB))
    assert story.memory.capacity == pytest.approx(3.85 * MIB, rel=0.01)


def test_no_more_start_while_those_that_run_store_nothing():
    slowly = ScaleUp(max_pods_per_minute=1, max_percent_per_minute=1)
    story = Story(replace(SPEC, max_replicas=100, scale_up=slowly))
    counts = [story.look(at_s, waiting(at_s, 1 << 30)).replicas for at_s in range(0, 300, 15)]
    assert counts == [2] * 20
    message = story.look(300, waiting(300, 1 << 30)).message
    assert message == "2 collectors: nothing was stored for 30 s, more would not help."

    assert story.look(315, waiting(315, 1 << 30, stored_bytes=MIB)).replicas == 3


def test_a_journal_that_began_anew_has_no_rates_below_zero():
    story = Story()
    story.look(0, waiting(0, appended_bytes=1 << 40))
    story.look(15, waiting(15, appended_bytes=100))
    assert story.memory.arrival is None
    story.look(30, waiting(30, appended_bytes=100 + 15 * MIB))
    assert story.memory.arrival == MIB


def test_the_same_sample_twice_teaches_nothing():
    story = Story()
    story.look(0, waiting(0))
    learnt = story.look(1, waiting(0)).memory
    assert learnt.sample == waiting(0)
    assert learnt.arrival is None


def test_the_first_record_wakes_at_once():
    story = Story(replace(ZERO, scale_up=ScaleUp(stabilization_window_seconds=3600)), current=0)
    asleep = story.look(0, empty(0))
    awake = story.look(2, waiting(2, 100, entries=1, oldest_age_s=0.1))

    assert (asleep.replicas, asleep.reason, asleep.needs_at_s) == (0, "ScaledToZero", 2)
    assert (awake.replicas, awake.needs_at_s) == (1, 17)


@pytest.mark.parametrize(
    "left",
    [
        pytest.param({"entries": 1, "pending": 0}, id="a record waits"),
        pytest.param({"entries": 0, "pending": 1}, id="a collector holds one"),
    ],
)
def test_nobody_sleeps_while_there_is_work(left):
    story = Story(replace(ZERO, idle_cooldown_seconds=30))
    counts = {
        story.look(at_s, waiting(at_s, 0, oldest_age_s=0.1, **left)).replicas
        for at_s in range(0, 3600, 15)
    }
    assert counts == {1}


def test_nothing_sleeps_before_the_cooldown_and_the_window_have_passed():
    story = Story(replace(ZERO, idle_cooldown_seconds=600))
    slept_at_s = next(
        at_s for at_s in range(0, 3600, 15) if not story.look(at_s, empty(at_s)).replicas
    )
    assert slept_at_s == 600


def test_records_that_come_and_go_between_two_looks_keep_a_collector():
    story = Story(ZERO)
    counts = {
        story.look(at_s, empty(at_s, appended_bytes=at_s // 60, stored_bytes=at_s // 60)).replicas
        for at_s in range(0, 3600, 15)
    }
    assert counts == {1}


@pytest.mark.parametrize("min_replicas", [0, 2])
def test_a_restart_wakes_nothing_that_sleeps(min_replicas):
    story = Story(replace(SPEC, min_replicas=min_replicas), current=0)
    assert story.look(0, empty(0)).replicas == min_replicas


def test_without_a_sample_nothing_changes_for_three_minutes():
    story = Story(replace(SPEC, fallback_replicas=6), current=4)
    decisions = [story.look(at_s, None) for at_s in range(0, 200, 15)]
    assert [one.replicas for one in decisions] == [4] * 12 + [6] * 2
    assert {one.reason for one in decisions} == {"MetricsUnavailable"}


def test_the_fallback_takes_none_away():
    story = Story(replace(SPEC, fallback_replicas=2), current=4)
    assert {story.look(at_s, None).replicas for at_s in range(0, 600, 15)} == {4}


def test_a_sample_that_is_too_old_is_none():
    story = Story(current=4)
    assert story.look(100, empty(50)).reason == "MetricsUnavailable"


def test_nothing_shrinks_at_once_when_the_journal_is_back():
    story = Story(current=4)
    for at_s in range(0, 3000, 15):
        story.look(at_s, None)
    counts = [story.look(at_s, empty(at_s)).replicas for at_s in range(3000, 3600, 15)]
    assert counts[:19] == [4] * 19
    assert counts[-1] == 1


def test_one_missing_sample_delays_no_step_down():
    story = Story(current=4)
    counts = [
        story.look(at_s, None if at_s % 60 == 0 else empty(at_s)).replicas
        for at_s in range(0, 600, 15)
    ]
    assert counts[-1] == 1


def test_when_more_are_needed_than_may_be_it_is_said_and_after_ten_minutes_warned_of():
    story = Story(replace(SPEC, max_replicas=3))
    stored = iter(range(1 << 20))
    decisions = [
        story.look(at_s, waiting(at_s, 1 << 30, stored_bytes=next(stored)))
        for at_s in range(0, 900, 15)
    ]
    assert {one.replicas for one in decisions} == {3}
    assert {one.reason for one in decisions} == {"AtMaximum"}
    assert decisions[0].message == "64 collectors would do, but maxReplicas allows 3."
    assert [one.is_stuck_at_maximum for one in decisions] == [False] * 40 + [True] * 20

    eased = story.look(900, waiting(900, MIB, stored_bytes=next(stored)))
    assert (eased.reason, eased.is_stuck_at_maximum) == ("Sampling", False)


def test_connections_cap_the_collectors_and_the_reason_is_said():
    decision = Story(most=2).look(0, waiting(0, 60 * MIB))
    assert (decision.replicas, decision.reason) == (2, "AtMaximum")
    assert (
        decision.message
        == "4 collectors would do, but the tenant's postgres.connectionLimit allows 2."
    )


@pytest.mark.parametrize(
    ("limit", "others", "left"), [(40, 0, 36), (40, 30, 6), (40, 100, 1), (2, 0, 1), (5, 1, 3)]
)
def test_a_tenants_connections_are_shared_by_its_pipelines(limit, others, left):
    assert scaling.budget(limit, others) == left


def test_keda_alone_scales_what_is_its():
    decision = Story(replace(SPEC, driver="KEDA"), current=7).look(0, waiting(0, 1 << 30))
    assert (decision.replicas, decision.reason) == (7, "ManagedByKeda")
    assert decision.memory.sample == waiting(0, 1 << 30)


def test_without_a_driver_as_many_run_as_are_asked_for():
    story = Story(replace(SPEC, driver="None"), current=1, manual=5)
    decision = story.look(0, None)
    assert (decision.replicas, decision.reason) == (5, "Manual")
    assert decision.message == "5 collectors, as spec.collector.replicas says."


def test_connections_cap_also_what_is_asked_for():
    story = Story(replace(SPEC, driver="None"), current=1, manual=50, most=36)
    decision = story.look(0, None)
    assert (decision.replicas, decision.reason) == (36, "Manual")
    assert "postgres.connectionLimit allows 36" in decision.message


def test_other_bounds_hold_at_once():
    story = Story(current=4)
    story.look(0, empty(0))
    story.spec = replace(SPEC, max_replicas=2)
    assert story.look(15, empty(15)).replicas == 2
    story.spec = replace(SPEC, min_replicas=50, max_replicas=100)
    assert story.look(30, empty(30)).replicas == 50


# ---- the condition Fresh, and words -------------------------------------------------------------


def test_the_goal_is_missed_when_two_looks_find_a_record_that_waits_for_longer():
    story = Story(within_s=5.0)
    answers = []
    for at_s, age_s in enumerate((1, 6, 1, 6, 6, None)):
        sample = empty(at_s) if age_s is None else waiting(at_s, oldest_age_s=age_s)
        story.look(at_s, sample)
        answers.append(scaling.fresh(5.0, sample, story.memory)[:2])
    held, missed = ("True", "WithinGoal"), ("False", "Behind")
    assert answers == [held, held, held, held, missed, held]


def test_nobody_knows_whether_the_goal_is_held_without_a_sample():
    assert scaling.fresh(5.0, None, Memory())[:2] == ("Unknown", "Unknown")


@pytest.mark.parametrize(
    ("sample", "arrival", "drain", "text"),
    [
        (empty(0), 5.0, 5.0, "empty"),
        (waiting(0, 1000), None, None, "unknown"),
        (waiting(0, 1000), 100.0, 90.0, "growing"),
        (waiting(0, 1000), 100.0, 150.0, "in 20 s"),
        (waiting(0, 50), 100.0, 100.0, "keeping up"),
    ],
)
def test_the_drain_is_said_in_words(sample, arrival, drain, text):
    assert scaling.drain_text(sample, Memory(arrival=arrival, drain=drain)) == text


# ---- laws --------------------------------------------------------------------------------------

sizes = st.one_of(st.integers(0, 64 * MIB), st.integers(0, 1 << 36))
seconds = st.floats(0, 200)


@st.composite
def specs(draw) -> Autoscaling:
    low = draw(st.integers(0, 5))
    high = draw(st.integers(max(1, low), 40))
    return Autoscaling(
        min_replicas=low,
        max_replicas=high,
        target_backlog_bytes=draw(st.integers(1 << 16, 1 << 28)),
        target_drain_seconds=draw(st.integers(5, 600)),
        tolerance_percent=draw(st.integers(0, 50)),
        idle_cooldown_seconds=draw(st.integers(30, 600)),
        fallback_replicas=draw(st.none() | st.integers(low, high)),
        scale_up=ScaleUp(
            stabilization_window_seconds=draw(st.sampled_from([0, 0, 30, 300])),
            max_percent_per_minute=draw(st.integers(1, 400)),
            max_pods_per_minute=draw(st.integers(1, 20)),
        ),
        scale_down=ScaleDown(
            stabilization_window_seconds=draw(st.sampled_from([0, 30, 300])),
            max_percent_per_minute=draw(st.integers(1, 100)),
        ),
    )


@st.composite
def samples(draw, at_s: float, before: Sample) -> Sample:
    stored = draw(sizes)
    entries = draw(st.integers(0, 1000)) if draw(st.booleans()) else 0
    backlog = draw(sizes) if entries else 0
    return Sample(
        at_s=at_s,
        backlog_bytes=backlog,
        entries=entries,
        pending=draw(st.integers(0, entries)),
        oldest_age_s=draw(seconds) if entries else None,
        appended_bytes=before.stored_bytes + stored + backlog,
        stored_bytes=before.stored_bytes + stored,
    )


@st.composite
def stories(draw, spec: st.SearchStrategy[Autoscaling] = specs()) -> tuple[Story, float, Sample]:
    """What came of some looks, when the next one is, and its sample."""
    story = Story(draw(spec), draw(st.sampled_from([0.5, 2.0, 60.0])), draw(st.integers(0, 40)))
    now_s, sample = draw(st.floats(0, 1e6)), Sample(0.0)
    for _ in range(draw(st.integers(0, 8))):
        now_s += draw(st.sampled_from([2.0, 15.0, 15.0, 100.0]))
        sample = draw(samples(now_s, sample))
        is_lost = draw(st.integers(0, 5)) == 0
        story.look(now_s, None if is_lost else sample, draw(st.integers(0, story.current)))
    now_s += draw(st.sampled_from([2.0, 15.0]))
    return story, now_s, draw(samples(now_s, sample))


def decide(story: Story, now_s: float, sample: Sample | None, most: int | None = None):
    return scaling.decide(
        *(story.spec, story.within_s, sample, story.memory, story.current, story.current, now_s),
        most=most,
    )


@given(stories(), st.none() | st.integers(1, 40))
def test_the_bounds_hold(told, most):
    story, now_s, sample = told
    count = decide(story, now_s, sample, most).replicas
    assert count <= story.spec.max_replicas
    assert most is None or count <= most
    assert count >= min(story.spec.min_replicas, most or 40)


@given(stories(), sizes)
def test_more_backlog_never_makes_fewer(told, more):
    story, now_s, sample = told
    assume(sample.entries)
    longer = replace(sample, backlog_bytes=sample.backlog_bytes + more)
    assert decide(story, now_s, sample).replicas <= decide(story, now_s, longer).replicas


@given(stories())
def test_work_always_has_a_collector(told):
    story, now_s, sample = told
    assume(not sample.is_empty)
    assert decide(story, now_s, sample).replicas >= 1


@given(stories(), st.booleans())
def test_a_bad_sample_shrinks_nothing(told, is_stale):
    story, now_s, sample = told
    bad = replace(sample, at_s=now_s - 46) if is_stale else None
    assert decide(story, now_s, bad).replicas >= story.current


@given(specs(), st.integers(0, 40), st.data())
def test_a_restart_shrinks_nothing_within_the_window(spec, current, data):
    story, sample = Story(spec, current=min(current, spec.max_replicas)), Sample(0.0)
    began_with, window_s = story.current, spec.scale_down.stabilization_window_seconds
    for at_s in range(1000, 1000 + window_s, 15):
        sample = data.draw(samples(float(at_s), sample))
        assert story.look(at_s, sample).replicas >= began_with


@given(stories())
def test_the_same_gives_the_same(told):
    story, now_s, sample = told
    assert decide(story, now_s, sample) == decide(story, now_s, sample)


@given(specs(), st.integers(1, 40), st.floats(0, 1))
def test_inside_the_tolerance_nothing_changes(spec, current, share):
    spec = replace(spec, min_replicas=1, max_replicas=40)
    tolerance = spec.tolerance_percent / 100
    backlog = int(spec.target_backlog_bytes * current * (1 + tolerance * (2 * share - 1) * 0.99))
    story = Story(spec, 1e9, current)
    counts = {story.look(at_s, waiting(at_s, backlog)).replicas for at_s in range(0, 45, 15)}
    assert counts == {current}


@given(stories())
def test_no_minute_brings_more_or_takes_more_than_it_may(told):
    story, now_s, sample = told
    spec = story.spec
    decision = decide(story, now_s, sample)
    counts = [one.count for one in decision.memory.counts]
    assert all(now_s - one.at_s < 60 for one in decision.memory.counts)
    up, down = spec.scale_up, spec.scale_down
    percent = -(-min(counts) * (100 + up.max_percent_per_minute) // 100)
    fastest = max(min(counts) + up.max_pods_per_minute, percent)
    slowest = max(counts) * (100 - down.max_percent_per_minute) // 100
    # Bounds of the spec, and the first collector of a record, hold at once.
    assert decision.replicas <= max(fastest, story.current, spec.min_replicas, 1)
    assert decision.replicas >= min(slowest, story.current, spec.max_replicas)


@given(stories())
def test_who_looks_again_does_so_soon(told):
    story, now_s, sample = told
    decision = decide(story, now_s, sample)
    assert decision.needs_at_s - now_s == pytest.approx(15 if decision.replicas else 2)
