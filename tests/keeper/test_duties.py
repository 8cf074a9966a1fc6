"""What is due for which tenant, and since when rows may go."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logweir.backends.keeper_store import Horizon
from logweir.core.names import PipelineId
from logweir.keeper import duties
from logweir.keeper.duties import Standing

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
HOURS_72 = timedelta(hours=72)


def kept(at_s: float = 0.0, **changes) -> Standing:
    """A quiet tenant that was served with all that is due at that time."""
    calm = {"inserted": 5, "changed_s": at_s - 1000, "began_s": at_s}
    return Standing(**(calm | {"upkept_s": at_s, "swept_s": at_s} | changes))


def test_a_new_tenant_gets_its_upkeep_then_a_sweep_then_looks():
    standing = duties.seen(Standing(), 0, 0.0)
    works = []
    for now_s in (0.0, 1.0, 11.0, 21.0):
        work = duties.due(standing, now_s)
        works.append(work)
        standing = duties.done(standing, work, now_s, is_finished=True)

    assert works == ["upkeep", "sweep", "look", "look"]


@pytest.mark.parametrize(
    ("standing", "now_s", "work"),
    [
        pytest.param(kept(), 299, None, id="nothing was written"),
        pytest.param(kept(), 300, "look", id="nothing was written for long"),
        pytest.param(kept(is_over=True), 29, None, id="too much is stored"),
        pytest.param(kept(is_over=True), 30, "look", id="too much is stored for a while"),
        pytest.param(kept(changed_s=5), 9, None, id="written, but looked at just now"),
        pytest.param(kept(changed_s=5), 10, "look", id="written since the last look"),
        pytest.param(kept(is_unfinished=True), 1, "look", id="the last look left something"),
        pytest.param(kept(upkept_s=-3600), 0, "upkeep", id="an hour since the upkeep"),
        pytest.param(kept(swept_s=-3600), 0, "sweep", id="an hour since the sweep"),
        pytest.param(
            kept(swept_s=-3600, upkept_s=-3600), 0, "upkeep", id="the upkeep before the sweep"
        ),
        pytest.param(kept(not_before_s=500), 499, None, id="it has to wait"),
        pytest.param(kept(not_before_s=500), 500, "look", id="it has waited"),
    ],
)
def test_what_is_due_follows_from_what_was_written_and_done(standing, now_s, work):
    assert duties.due(standing, now_s) == work


def test_what_was_written_is_looked_at_again_when_it_is_old_enough():
    standing = duties.seen(kept(), 6, 100.0)
    looks = []
    for tenths in range(1000, 4000):
        now_s = tenths / 10
        if duties.due(standing, now_s) == "look":
            looks.append(now_s)
            standing = duties.done(standing, "look", now_s, is_finished=True)

    assert looks[0] == 100.0
    assert any(look > 100.0 + duties.merges.MIN_AGE_S for look in looks[:3])
    assert len(looks) <= 4


def test_the_same_count_again_is_no_change():
    standing = duties.seen(kept(), 5, 100.0)

    assert standing == kept()


def test_a_sweep_that_was_not_finished_is_due_again_at_once():
    standing = duties.done(kept(swept_s=-3600), "sweep", 0.0, is_finished=False)

    assert duties.due(standing, 0.1) == "sweep"


def test_failures_wait_longer_each_time_up_to_a_bound():
    standing, waits = kept(), []
    for _ in range(30):
        standing = duties.failed(standing, 0.0)
        waits.append(standing.not_before_s)

    assert waits[:4] == [10, 20, 40, 80]
    assert waits[-1] == 300


def test_a_tenant_whose_retention_fails_waits_longer_and_has_all_its_works():
    standing, works, now_s = duties.seen(Standing(), 0, 0.0), [], 0.0
    waits = []
    for _ in range(3):
        work = duties.due(standing, now_s)
        standing = duties.partly_done(standing, work, now_s, now_s, is_finished=True)
        works.append(work)
        waits.append(standing.not_before_s - now_s)
        now_s = standing.not_before_s

    assert works == ["upkeep", "sweep", "look"]
    assert waits == [10, 20, 40]


def test_a_visit_that_works_ends_the_waiting():
    standing = duties.done(duties.failed(kept(), 0.0), "look", 20.0, is_finished=True)

    assert (standing.failures, standing.not_before_s) == (0, float("-inf"))


def test_a_tenant_of_another_keeper_is_tried_again_later():
    standing = duties.refused(kept(changed_s=0), 10.0)

    assert duties.due(standing, 39.9) is None
    assert duties.due(standing, 40.0) == "look"


def test_what_is_kept_is_looked_at_as_a_whole_at_once_when_it_was_said_anew():
    standing = duties.ruled(kept(0.0), 20.0)
    by_what_was_said_before = duties.done(standing, "upkeep", 19.0, is_finished=True)
    by_what_is_said = duties.done(standing, "upkeep", 20.0, is_finished=True)

    assert duties.due(standing, 20.0) == "upkeep"
    assert duties.due(by_what_was_said_before, 21.0) == "upkeep"
    assert duties.due(by_what_is_said, 21.0) is None


def test_rows_go_72_hours_before_the_horizon_of_their_pipeline():
    horizon = NOW - timedelta(minutes=7)

    found = duties.cutoffs([Horizon(PipelineId(1), horizon)], [PipelineId(1)], NOW)

    assert found.by_pipeline == {1: horizon - HOURS_72}


def test_a_pipeline_of_which_nothing_is_known_keeps_all_its_rows():
    found = duties.cutoffs([], [PipelineId(1)], NOW)

    assert found.by_pipeline == {1: None}


def test_rows_of_deleted_pipelines_go_when_they_are_72_hours_old():
    found = duties.cutoffs([Horizon(PipelineId(9), NOW - timedelta(days=30))], [], NOW)

    assert found == duties.Cutoffs({}, NOW - HOURS_72)


@given(
    st.dictionaries(st.integers(1, 9), st.integers(0, 10**6), max_size=9),
    st.sets(st.integers(1, 9)),
)
def test_no_cutoff_is_later_than_72_hours_ago(ages_s, pipelines):
    horizons = [Horizon(PipelineId(p), NOW - timedelta(seconds=s)) for p, s in ages_s.items()]

    found = duties.cutoffs(horizons, {PipelineId(p) for p in pipelines}, NOW)

    assert set(found.by_pipeline) == pipelines
    assert all(at <= NOW - HOURS_72 for at in found.by_pipeline.values() if at)
    assert found.others == NOW - HOURS_72
