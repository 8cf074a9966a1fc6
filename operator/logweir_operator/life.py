"""Decide how a tenant goes. Pure: no clock, no I/O.

    refusing    appends are refused, API keys revoked
    draining    collectors store what is in the journals, until nothing is left or nothing moves
    sealed      logins locked, their sessions ended, Redis users and keys gone
      retained     deletionPolicy Retain ends here: the data is kept, and may be adopted
    tombstoned  the schema has another name, and its partitions go one by one
    dropped     the schema and its roles go
      deleted      deletionPolicy Delete ends here: the row stays, so that the id is not given again

A state is written down before its work begins, each work may be done again from any half-done
state, and no state is left before its work is done: after a crash anybody goes on from the row.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import msgspec

from logweir.core.states import TenantState

Policy = Literal["Retain", "Delete"]

DRAIN_PATIENCE_S: Final = 600.0
"""How long a journal may stand still before what is in it is given up. A collector that starts
anew, reads its backlog again and waits out a failover of the store needs a minute or two of it."""

MAX_LOOK_S: Final = 5.0
"""A longer time between two looks does not count as standing still: the reconciler, the store or
all of the node was away, and so were the collectors."""


class Patience(msgspec.Struct, frozen=True):
    """How long a journal stands still (`still_s`), as of the last look at it."""

    blocks: int
    looked_at_s: float
    still_s: float = 0.0

    def look(self, blocks: int, now_s: float) -> Patience:
        """Return what is known after another look; one that finds fewer blocks begins anew.

        Args:
            blocks: that the journal holds now.
            now_s: of a clock that never goes back.
        """
        if blocks < self.blocks:
            return Patience(blocks, now_s)
        passed_s = min(MAX_LOOK_S, max(0.0, now_s - self.looked_at_s))
        return Patience(blocks, now_s, self.still_s + passed_s)


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What the work of a state has found left to do; nothing: it is done.

    Attributes:
        pipelines: names of LogPipelines that refer to the tenant and are not deleted.
        blocks: that its journals hold.
        records: in those blocks.
        pending: blocks that collectors hold and have not acknowledged.
        still_s: how long no block was stored.
        sessions: of its logins, that have not ended yet.
        partitions: of its store, that are not dropped yet.
    """

    pipelines: tuple[str, ...] = ()
    blocks: int = 0
    records: int = 0
    pending: int = 0
    still_s: float = 0.0
    sessions: int = 0
    partitions: int = 0


def policy_of(spec: dict[str, object]) -> Policy:
    """Return a stored spec's deletionPolicy; whatever is not understood keeps the data."""
    return "Delete" if spec.get("deletionPolicy") == "Delete" else "Retain"


def is_over(state: TenantState, policy: Policy) -> bool:
    """Whether nothing is left to do for a tenant whose deletion was asked for."""
    return state == "deleted" or (state == "retained" and policy == "Retain")


def next_state(state: TenantState, policy: Policy, seen: Seen) -> TenantState:
    """Return the state that follows when the work of `state` has found this; the same: it waits."""
    match state:
        case "refusing":
            return "draining"
        case "draining":
            is_drained = not seen.blocks and not seen.pending
            return "sealed" if is_drained or seen.still_s >= DRAIN_PATIENCE_S else state
        case "sealed":
            if seen.sessions:
                return state
            return "retained" if policy == "Retain" else "tombstoned"
        case "tombstoned":
            return state if seen.partitions else "dropped"
        case "dropped":
            return "deleted"
        case "deleted":
            return state
        case "retained" if policy == "Retain":
            return state
        case "provisioning" | "active" | "readonly" | "retained":
            return state if seen.pipelines else "refusing"


def waits_for(state: TenantState, seen: Seen) -> str:
    """Return in words what a tenant in this state waits for."""
    if seen.pipelines:
        return f"It still has pipelines: {', '.join(seen.pipelines)}. Delete them first."
    if state == "draining":
        return f"draining: {_drained(seen)}"
    if state == "sealed":
        return f"sealed: {_are(seen.sessions, 'session', ' of its logins')} not ended yet."
    return f"{state}: {_are(seen.partitions, 'partition')} not dropped yet."


def given_up(seen: Seen) -> str:
    """Return in words what is not stored although the patience has ended; nothing if all is."""
    if not seen.blocks:
        return ""
    return f"{_journal(seen)} not stored and given up."


def _drained(seen: Seen) -> str:
    if not seen.blocks:
        return f"{_are(seen.pending, 'block')} not acknowledged yet."
    left_min = math.ceil(max(0.0, DRAIN_PATIENCE_S - seen.still_s) / 60)
    return f"{_journal(seen)} not stored yet; given up if none is within {left_min} min."


def _journal(seen: Seen) -> str:
    records = f"{seen.records} record{'' if seen.records == 1 else 's'}"
    return _are(seen.blocks, "block", f" with {records}")


def _are(count: int, thing: str, more: str = "") -> str:
    """`1 block is`, `2 blocks are`."""
    return f"{count} {thing}{more} is" if count == 1 else f"{count} {thing}s{more} are"
