"""All moves that can be made here, by name; what cannot, and why."""

from __future__ import annotations

from collections.abc import Mapping

from chaos import failpoint_moves, ills, kills, stops, twins
from chaos.faults import Move
from chaos.standing import Up

MOVES: Mapping[str, Move] = {
    **kills.MOVES,
    **stops.MOVES,
    **twins.MOVES,
    **ills.MOVES,
    **failpoint_moves.MOVES,
}
"""Those that need nothing."""


def possible(up: Up) -> tuple[Mapping[str, Move], list[str]]:
    """Return the moves that can be made here, and what is left out with its reason."""
    found, left_out = dict(MOVES), []
    if up.shims is not None:
        found |= ills.SHIMMED
    else:
        left_out.append("clocks and slow fsync: they need gcc, on Linux")
    if up.disks:
        found |= ills.FULL
    else:
        left_out.append("full disks: they need root that may mount, on Linux")
    return found, left_out
