"""When credentials change, and to what: the decision alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from logweir.backends.control import Tenant
from logweir.core import keys
from logweir.core.names import TenantId
from logweir_operator import rotation
from logweir_operator.model import Rotation
from logweir_operator.rotation import Asked, Begin, Close, End, Make, Sign, Use

BORN = datetime(2026, 1, 1, tzinfo=UTC)
ROW = Tenant(
    id=TenantId("acme"),
    cluster="up",
    namespace="default",
    name="acme",
    state="active",
    spec={},
    retention_days=30,
    writer_slot="a",
    reader_slot="a",
    keeper_slot="a",
    writer_revision=1,
    reader_revision=1,
    keeper_revision=1,
    redis_revision=1,
    ingest_revision=1,
    access_revision=1,
    rotated_at=BORN,
)
SPEC = Rotation(enabled=True, interval_seconds=10_000, overlap_seconds=600)
OFF = Rotation()
SPREAD_S = 10.0


def after(seconds: float) -> datetime:
    return BORN + timedelta(seconds=seconds)


def decide(row=ROW, spec=SPEC, asked=None, roots=(1, None), at_s: float = 0.0):
    return rotation.decide(row, spec, asked, roots, SPREAD_S, after(at_s))


SPREADING = rotation.begun(ROW, 600, 1, BORN)
OVERLAPPING = rotation.signed(SPREADING)


@pytest.mark.parametrize(
    ("row", "given_", "step"),
    [
        pytest.param(ROW, {"at_s": 9_999}, None, id="before the interval"),
        pytest.param(ROW, {"at_s": 10_000}, Begin(600), id="after the interval"),
        pytest.param(ROW, {"at_s": 1e9, "spec": OFF}, None, id="not enabled"),
        pytest.param(ROW, {"spec": OFF, "asked": Asked()}, Begin(86_400), id="asked for"),
        pytest.param(ROW, {"asked": Asked(30)}, Begin(30), id="with an overlap"),
        pytest.param(ROW, {"asked": Asked(0)}, Begin(SPREAD_S), id="no overlap is too short"),
        pytest.param(ROW, {"roots": (2, None)}, Begin(600), id="new roots"),
        pytest.param(ROW, {"roots": (2, 60)}, Begin(60), id="new roots with an overlap"),
        pytest.param(SPREADING, {"at_s": 9}, None, id="not yet known to all"),
        pytest.param(SPREADING, {"at_s": 9, "asked": Asked()}, None, id="nor when asked for"),
        pytest.param(SPREADING, {"at_s": 10}, Sign(), id="known to all"),
        pytest.param(OVERLAPPING, {"at_s": 599}, None, id="while old ones are good"),
        pytest.param(OVERLAPPING, {"at_s": 600}, End(), id="after the overlap"),
        pytest.param(OVERLAPPING, {"at_s": 600, "spec": OFF}, End(), id="also when not enabled"),
        pytest.param(OVERLAPPING, {"at_s": 11, "asked": Asked()}, End(), id="the next one waits"),
        pytest.param(OVERLAPPING, {"at_s": 11, "roots": (2, 60)}, End(), id="so do new roots"),
    ],
)
def test_the_next_step_is_decided_by_phase_time_and_wish(row, given_, step):
    assert decide(row, **given_) == step


def test_a_rotation_changes_every_login_and_only_later_what_signs_keys():
    assert (SPREADING.writer_slot, SPREADING.reader_slot, SPREADING.keeper_slot) == ("b",) * 3
    assert (SPREADING.writer_revision, SPREADING.redis_revision) == (2, 2)
    assert (SPREADING.ingest_revision, SPREADING.access_revision) == (1, 1)
    assert (OVERLAPPING.ingest_revision, OVERLAPPING.access_revision) == (2, 2)
    assert SPREADING.overlap_until == after(600)
    assert rotation.ended(OVERLAPPING).overlap_until is None


def test_a_second_rotation_comes_back_to_the_first_slot_with_a_third_revision():
    again = rotation.begun(rotation.ended(OVERLAPPING), 600, 1, after(10_000))

    assert (again.writer_slot, again.writer_revision) == ("a", 3)


def test_old_keys_stay_with_the_root_that_signed_them():
    row = rotation.ended(rotation.signed(rotation.begun(ROW, 60, 3, BORN)))

    assert (row.root_version, row.old_root_version) == (3, 1)
    assert [keys.root_version(row.signed_since, one) for one in (1, 2, 3)] == [1, 3, 3]


def test_a_tenant_that_is_made_anew_overlaps_with_nothing():
    row = rotation.made_anew(ROW, 2, BORN)

    assert (row.rotation, row.root_version, row.overlap_until) == ("steady", 2, None)
    assert keys.root_version(row.signed_since, row.ingest_revision) == 2


@given(
    st.lists(
        st.tuples(
            st.floats(0, 20_000),
            st.none() | st.floats(0, 900).map(Asked),
            st.integers(0, 1),
        ),
        max_size=60,
    )
)
def test_whatever_is_asked_for_old_credentials_outlive_the_spread_and_all_comes_to_rest(moves):
    row, at_s, version = ROW, 0.0, 1
    for wait_s, asked, more in [*moves, *[(100_000.0, None, 0)] * 9]:
        at_s, version = at_s + wait_s, version + more
        spec = OFF if wait_s == 100_000.0 else SPEC
        step = decide(row, spec, asked, (version, None), at_s)
        if isinstance(step, Begin):
            assert row.rotation == "steady"
            row = rotation.begun(row, step.overlap_s, version, after(at_s))
        elif isinstance(step, Sign):
            row = rotation.signed(row)
        elif isinstance(step, End):
            assert (after(at_s) - row.rotated_at).total_seconds() >= SPREAD_S
            row = rotation.ended(row)
        assert len(row.signed_since) == row.root_version <= version
        assert list(row.signed_since) == sorted(row.signed_since)
    assert row.rotation == "steady"
    assert row.root_version == version


# ---- roots ----------------------------------------------------------------------------------


def next_of_roots(versions, used, logins, of_keys=(), at_s=1e6, moving=None, **options):
    held = rotation.Roots(versions, used, made_at_s=0, used_at_s=0, overlap_s=60)
    needed = rotation.Uses(set(logins), set(of_keys), set(logins if moving is None else moving))
    how = {"is_asked": False, "spread_s": SPREAD_S, "now_s": at_s} | options
    return rotation.next_of_roots(held, needed, **how)


@pytest.mark.parametrize(
    ("found", "step"),
    [
        pytest.param(next_of_roots([1], 1, {1}), None, id="nothing is asked for"),
        pytest.param(next_of_roots([1], 1, {1}, is_asked=True), Make(), id="asked for"),
        pytest.param(next_of_roots([1, 2], 1, {1}, at_s=9), None, id="not yet known to all"),
        pytest.param(next_of_roots([1, 2], 1, {1}, at_s=10), Use(), id="known to all"),
        pytest.param(next_of_roots([1, 2], 2, {1, 2}, at_s=59), None, id="while both are good"),
        pytest.param(next_of_roots([1, 2], 2, {1, 2}), Close((), ()), id="tenants need it"),
        pytest.param(next_of_roots([1, 2], 2, {2}, {1, 2}), Close((), (1,)), id="keys need it"),
        pytest.param(next_of_roots([1, 2], 2, {2}, {2}), Close((1,), ()), id="nobody needs it"),
        pytest.param(
            next_of_roots([1, 2], 2, {1, 2}, at_s=1, is_asked=True), None, id="one at a time"
        ),
        pytest.param(
            next_of_roots([1, 2], 2, {1, 2}, moving={2}, is_asked=True),
            Make(),
            id="who does not rotate delays nothing",
        ),
        pytest.param(next_of_roots([1, 2, 3], 3, {3}, {1}), Close((2,), (1,)), id="two are older"),
        pytest.param(
            next_of_roots([1, 2], 2, {2}, {1}, is_asked=True), Make(), id="old keys delay nothing"
        ),
    ],
)
def test_the_roots_next_step_is_decided_by_who_needs_them(found, step):
    assert found == step


def test_what_tenants_need_are_roots_of_their_logins_and_of_keys_in_force():
    moved = rotation.signed(rotation.begun(ROW, 60, 2, BORN))

    def uses(row, live, moving=("acme",)):
        return rotation.uses([row], live, moving)

    assert uses(moved, {"acme": [1]}) == rotation.Uses({1, 2}, {1, 2}, {1, 2})
    assert uses(rotation.ended(moved), {"acme": [1]}) == rotation.Uses({2}, {1, 2}, {2})
    assert uses(rotation.ended(moved), {}) == rotation.Uses({2}, {2}, {2})
    assert uses(moved, {}, ()) == rotation.Uses({1, 2}, {2}, set())
    assert uses(replace(ROW, state="draining"), {}, ()) == rotation.Uses({1}, {1}, set())
    assert uses(replace(ROW, state="retained"), {"acme": [1]}) == rotation.Uses(set(), set(), set())


def test_an_overlap_ends_when_somebody_wants_new_roots():
    row = rotation.signed(rotation.begun(ROW, 86_400, 1, BORN))
    now = BORN + timedelta(seconds=60)

    assert rotation.decide(row, Rotation(), None, (1, None), SPREAD_S, now) is None
    step = rotation.decide(row, Rotation(), None, (1, None), SPREAD_S, now, are_roots_asked=True)
    assert step == End()
