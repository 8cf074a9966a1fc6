"""How a tenant goes, as it is decided: the same end after any crashes, and nothing too early."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logweir.core import states
from logweir_operator import life
from logweir_operator.life import DRAIN_PATIENCE_S, MAX_LOOK_S, Patience, Policy, Seen

ENDS = {"Retain": "retained", "Delete": "deleted"}

policies = st.sampled_from(["Retain", "Delete"])
counts = st.integers(0, 3)
anything_seen = st.builds(
    Seen,
    pipelines=st.sampled_from([(), ("web",)]),
    blocks=counts,
    records=counts,
    pending=counts,
    still_s=st.sampled_from([0.0, 1.0, DRAIN_PATIENCE_S - 1, DRAIN_PATIENCE_S, 1e9]),
    sessions=counts,
    partitions=counts,
)


def way(state: str, policy: Policy, seen: Seen = Seen()) -> list[str]:
    """All states from this one on, as long as each finds the same."""
    found = [state]
    while (after := life.next_state(found[-1], policy, seen)) != found[-1]:
        found.append(after)
        assert len(found) < 20
    return found


# ---- one decision ---------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["provisioning", "active", "readonly"])
def test_a_tenant_goes_through_all_steps_to_the_end_of_its_policy(state):
    assert way(state, "Retain") == [state, "refusing", "draining", "sealed", "retained"]
    assert way(state, "Delete") == [state, *states.LEAVING, "deleted"]


def test_kept_data_is_dropped_when_its_object_comes_back_to_be_deleted():
    assert way("retained", "Retain") == ["retained"]
    assert way("retained", "Delete") == ["retained", *states.LEAVING, "deleted"]


@pytest.mark.parametrize(
    ("state", "seen", "words"),
    [
        ("active", Seen(pipelines=("web", "ops")), "web, ops"),
        ("draining", Seen(blocks=1, records=1), "1 block with 1 record is not stored yet;"),
        ("draining", Seen(blocks=2, records=9), "2 blocks with 9 records are not stored yet;"),
        (
            "draining",
            Seen(blocks=1, still_s=590),
            "; given up if none is within 1 min.",
        ),
        ("draining", Seen(pending=1), "1 block is not acknowledged"),
        ("sealed", Seen(sessions=2), "2 sessions of its logins are not ended yet."),
        ("tombstoned", Seen(partitions=1), "1 partition is not dropped yet."),
    ],
)
def test_what_is_waited_for_is_said_and_over_when_it_is_gone(state, seen, words):
    assert life.next_state(state, "Delete", seen) == state
    assert words in life.waits_for(state, seen)
    assert life.next_state(state, "Delete", Seen()) != state


@pytest.mark.parametrize("seen", [Seen(blocks=2, records=9), Seen(blocks=1, pending=1)])
def test_a_journal_is_given_up_when_it_stood_still_for_the_whole_patience(seen):
    def after(still_s: float) -> str:
        return life.next_state(
            "draining",
            "Retain",
            Seen(blocks=seen.blocks, records=seen.records, pending=seen.pending, still_s=still_s),
        )

    assert after(DRAIN_PATIENCE_S - 0.1) == "draining"
    assert after(DRAIN_PATIENCE_S) == "sealed"
    assert "given up" in life.given_up(seen)
    assert life.given_up(Seen(pending=1)) == ""


@pytest.mark.parametrize(
    ("spec", "policy"),
    [
        ({}, "Retain"),
        ({"deletionPolicy": "Retain"}, "Retain"),
        ({"deletionPolicy": "Delete"}, "Delete"),
        ({"deletionPolicy": "delete"}, "Retain"),
        ({"deletionPolicy": None}, "Retain"),
    ],
)
def test_only_the_word_delete_drops_data(spec, policy):
    assert life.policy_of(spec) == policy


@given(state=st.sampled_from(get_args(states.TenantState)), policy=policies, seen=anything_seen)
def test_no_decision_leads_back_or_over_a_step(state, policy, seen):
    after = life.next_state(state, policy, seen)

    assert after in way(state, policy)[:2]


# ---- patience -------------------------------------------------------------------------------


def test_a_journal_that_moves_is_never_given_up():
    found = Patience(1000, 0.0)
    for number in range(1, 900):
        found = found.look(1000 - number, number * MAX_LOOK_S)
        assert found.still_s == 0.0


def test_a_journal_that_stands_still_is_given_up_after_the_patience():
    found = Patience(3, 0.0)
    for second in range(1, int(DRAIN_PATIENCE_S) + 1):
        assert found.still_s < DRAIN_PATIENCE_S
        found = found.look(3, float(second))

    assert found.still_s == DRAIN_PATIENCE_S


def test_time_in_which_nobody_looked_is_no_time_of_standing_still():
    assert Patience(3, 0.0).look(3, 86_400.0).still_s == MAX_LOOK_S


# ---- any crashes ----------------------------------------------------------------------------


class CrashError(Exception):
    """The reconciler dies here."""


class Servers:
    """What a tenant has outside, and the work of each state on it, effect by effect."""

    def __init__(self, policy: Policy, blocks: int, partitions: int, chances: Iterator[int]):
        self.policy, self.chances = policy, chances
        self.state = "active"
        self.blocks, self.stored, self.given_up = blocks, 0, 0
        self.accepted = blocks
        self.is_refusing = self.is_locked = self.is_renamed = False
        self.has_users = self.has_schema = self.has_roles = True
        self.partitions = partitions
        self.sessions = 2
        self.is_calm = False
        self.patience: Patience | None = None
        self.now_s = 0.0

    def chance(self, below: int) -> int:
        found = next(self.chances, None)
        self.is_calm = found is None
        return (found or 0) % below

    def others_go_on(self) -> None:
        """What senders, collectors and the servers do between two effects."""
        self.now_s += self.chance(20)
        if not self.is_refusing and self.chance(2):
            self.blocks += 1
            self.accepted += 1
        if self.has_users and self.blocks and self.chance(3) == 1:
            self.blocks -= 1
            self.stored += 1
        if self.is_locked and self.sessions and self.chance(2):
            self.sessions -= 1
        if self.is_calm:  # what is left of the journal stands still for good
            self.now_s += 1
            self.sessions = 0 if self.is_locked else self.sessions

    def effects(self) -> list[Callable[[], None]]:
        def put(**changes: object) -> Callable[[], None]:
            return lambda: self.__dict__.update(changes)

        def drop_one() -> None:
            assert self.is_renamed
            self.partitions = max(0, self.partitions - 1)

        return {
            "refusing": [put(is_refusing=True)],
            "sealed": [put(is_locked=True), self.seal],
            "tombstoned": [put(is_renamed=True), drop_one, drop_one],
            "dropped": [put(has_schema=False), put(has_roles=False)],
        }.get(self.state, [])

    def seal(self) -> None:
        stands = self.patience is not None and self.patience.still_s >= DRAIN_PATIENCE_S
        assert not self.blocks or stands, "the journal goes while there is something in it"
        self.has_users = False
        self.given_up += self.blocks
        self.blocks = 0

    def seen(self) -> Seen:
        if self.state == "draining":
            assert self.is_refusing
            before = self.patience or Patience(self.blocks, self.now_s)
            self.patience = before.look(self.blocks, self.now_s)
            return Seen(blocks=self.blocks, still_s=self.patience.still_s)
        if self.state == "sealed":
            return Seen(sessions=self.sessions)
        return Seen(partitions=self.partitions if self.state == "tombstoned" else 0)

    def step(self) -> None:
        """One pass, in which the reconciler may die after any of its effects."""
        for effect in self.effects():
            effect()
            self.others_go_on()
            if self.chance(3) == 1:
                raise CrashError
        self.state = life.next_state(self.state, self.policy, self.seen())
        self.check()

    def check(self) -> None:
        if self.policy == "Retain" or self.state in ("active", "refusing", "draining", "sealed"):
            assert (self.has_schema, self.is_renamed, self.has_roles) == (True, False, True)
        if self.state in ("tombstoned", "dropped", "deleted", "retained"):
            assert (self.has_users, self.blocks, self.sessions) == (False, 0, 0)

    def end(self) -> tuple[object, ...]:
        outside = (self.is_refusing, self.is_locked, self.has_users, self.has_schema)
        return (self.state, *outside, self.has_roles, self.blocks, self.sessions)


@settings(max_examples=300)
@given(policy=policies, blocks=counts, partitions=counts, chances=st.lists(st.integers(0, 59)))
def test_any_crashes_and_repetitions_end_in_the_same_state(policy, blocks, partitions, chances):
    undisturbed = Servers(policy, 0, partitions, iter(()))
    disturbed = Servers(policy, blocks, partitions, iter(chances))
    for servers in (undisturbed, disturbed):
        while not life.is_over(servers.state, policy):
            try:
                servers.step()
            except CrashError:
                servers.patience = None  # it was in the memory of who has died
            servers.others_go_on()

    assert disturbed.state == ENDS[policy]
    assert disturbed.end() == undisturbed.end()
    assert disturbed.accepted == disturbed.stored + disturbed.given_up
    if policy == "Retain":
        assert disturbed.partitions == partitions
