"""Collectors under loads that change, simulated: how often their number changes, how much waits,
and for how long a record waits for longer than the goal."""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace
from simulating import MIB, Pipeline

from logweir_operator.model import Autoscaling, ScaleDown

SPEC = Autoscaling(max_replicas=30)
ZERO = replace(SPEC, min_replicas=0)
HOUR_S = 3600.0


def constant(load):
    return lambda _: load


def step(before, after, at_s=300.0):
    return lambda now_s: before if now_s < at_s else after


def test_a_step_of_twentyfold_is_met_and_settles():
    told = Pipeline(SPEC, load=step(2 * MIB, 40 * MIB)).run(300 + HOUR_S)

    assert told.recovered_at_s(300) <= 300 + 150
    assert told.worst_backlog() <= 1600 * MIB
    assert told.wanted in (13, 14)  # 12.5 are needed at a utilisation of 80 %
    assert len(told.changes()) <= 8
    assert not told.changes(since_s=300 + 600)


@pytest.mark.parametrize("noise", [0.0, 0.15, 0.4])
@pytest.mark.parametrize("load", [1, 3, 18, 60])
def test_a_constant_load_settles_and_nothing_flaps(load, noise):
    told = Pipeline(SPEC, load=constant(load * MIB), noise=noise).run(2 * HOUR_S)

    assert len(told.changes()) <= 6
    assert not told.changes(since_s=900)
    assert told.late_s(since_s=300) == 0


def test_a_load_that_comes_and_goes_slowly_is_followed():
    def sine(now_s: float) -> float:
        return 20 * MIB * (1 + 0.9 * math.sin(now_s / 1200 * 2 * math.pi))

    told = Pipeline(SPEC, load=sine).run(2 * HOUR_S)

    assert len(told.changes()) <= 90
    assert told.worst_backlog(since_s=300) <= 400 * MIB
    assert told.late_s(since_s=300) <= 0.1 * 2 * HOUR_S


def test_a_longer_window_makes_fewer_changes():
    def sine(now_s: float) -> float:
        return 20 * MIB * (1 + 0.9 * math.sin(now_s / 1200 * 2 * math.pi))

    longer = replace(SPEC, scale_down=ScaleDown(stabilization_window_seconds=1800))
    told = Pipeline(longer, load=sine).run(2 * HOUR_S)

    assert len(told.changes()) <= 8
    assert told.late_s(since_s=1200) == 0


def test_a_load_that_stops_goes_to_zero_once():
    told = Pipeline(ZERO, load=lambda now_s: 18 * MIB if now_s < 900 else 0).run(2 * HOUR_S)

    after = told.changes(since_s=900)
    counts = [count for _, count in after]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0
    assert 900 + 300 <= after[-1][0] <= 900 + 600


def test_one_record_wakes_in_one_look_and_sleep_follows():
    told = Pipeline(
        ZERO, collectors=0, load=lambda now_s: 200 if now_s == 1001 else 0, noise=0, start_s=5
    ).run(HOUR_S)

    (woken_s, one), (asleep_s, none) = told.changes()
    assert (one, none) == (1, 0)
    assert woken_s - 1001 <= 2
    assert 300 <= asleep_s - woken_s <= 330
    assert told.late_s() <= 8


@pytest.mark.parametrize("every_s", [30, 45, 120])
def test_collectors_that_die_make_no_flapping(every_s):
    told = Pipeline(SPEC, load=constant(18 * MIB), dies_every_s=every_s).run(2 * HOUR_S)

    assert not told.changes(since_s=900)
    assert told.worst_backlog(since_s=300) <= 100 * MIB


def test_lost_samples_make_no_flapping():
    told = Pipeline(SPEC, load=constant(18 * MIB), has_sample=lambda now_s: int(now_s) % 7 > 1).run(
        2 * HOUR_S
    )
    assert not told.changes(since_s=900)


def test_a_journal_that_cannot_be_asked_changes_nothing():
    told = Pipeline(
        SPEC, load=constant(18 * MIB), has_sample=lambda now_s: not 1200 < now_s < 2400
    ).run(HOUR_S)
    assert not told.changes(since_s=900)


def test_a_restart_of_the_operator_changes_nothing():
    told = Pipeline(SPEC, load=constant(18 * MIB)).run(1200)
    settled = told.wanted
    for _ in range(10):
        told.restart_operator()
        told.run(told.now_s + 250)

    assert not told.changes(since_s=900)
    assert told.wanted == settled
    assert told.late_s(since_s=900) == 0


def test_a_store_that_is_away_is_not_answered_by_collectors_without_end():
    spec = replace(SPEC, max_replicas=1000)
    told = Pipeline(
        spec, load=constant(6 * MIB), store=lambda now_s: float(not 900 < now_s < 1800)
    ).run(HOUR_S)

    while_away = [one.wanted for one in told.moments if 900 < one.at_s <= 1800]
    assert max(while_away) <= 25  # its backlog alone would ask for 340
    assert told.recovered_at_s(1800) <= 1800 + 120
    assert told.wanted == 2


def test_a_store_that_was_slow_for_minutes_leaves_no_more_collectors_than_before():
    told = Pipeline(
        SPEC, load=constant(6 * MIB), store=lambda now_s: 0.3 if 900 < now_s < 1200 else 1.0
    ).run(HOUR_S)
    assert told.moments[890].wanted == told.wanted == 2


def test_at_the_maximum_it_is_said():
    told = Pipeline(replace(SPEC, max_replicas=4), load=constant(18 * MIB)).run(1200)
    assert {one.reason for _, one in told.decisions[2:]} == {"AtMaximum"}
    assert told.decisions[-1][1].is_stuck_at_maximum
    assert told.wanted == 4


# ---- the goal ----------------------------------------------------------------------------------

ONLY_THE_GOAL = replace(SPEC, target_backlog_bytes=1 << 40, target_drain_seconds=86400)


def burst(now_s: float) -> float:
    return 60 * MIB if 600 <= now_s < 660 else 6 * MIB


def test_a_missed_goal_alone_brings_collectors():
    held = Pipeline(ONLY_THE_GOAL, within_s=2.0, load=burst).run(HOUR_S)
    lax = Pipeline(ONLY_THE_GOAL, within_s=3600.0, load=burst).run(HOUR_S)

    assert held.recovered_at_s(600) <= 600 + 120
    assert lax.recovered_at_s(600) == 600
    assert max(one.age_s for one in lax.moments) > max(one.age_s for one in held.moments) + 10
    assert max(one.wanted for one in lax.moments) < max(one.wanted for one in held.moments) / 2


@pytest.mark.parametrize("load", [3, 10, 40, 90])
def test_the_goal_is_held_where_the_maximum_allows(load):
    told = Pipeline(ONLY_THE_GOAL, within_s=2.0, load=constant(load * MIB)).run(HOUR_S)
    assert told.late_s(since_s=900) == 0


def test_a_load_that_grows_slowly_never_misses_the_goal_for_long():
    told = Pipeline(SPEC, within_s=2.0, load=lambda now_s: (2 + now_s / 60) * MIB).run(HOUR_S)
    assert told.late_s() <= 0.05 * HOUR_S
