"""Faults at failpoints: a role dies, stands still or fails exactly where that can do harm.

    arm -> SIGTERM (it comes back armed) ... it reaches the point -> disarm -> it is back

What is armed is read when a role starts, so it is started anew first.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Awaitable, Callable
from functools import partial

import psycopg
from chaos.faults import Faults, Move, until

REACHED_S = 25.0
"""How long a point may be on its way: a keeper waits until there is something to merge."""

HANG_S = 3.0
FAIL_S = 3.0

Act = Callable[[Faults, random.Random], Awaitable[None]]

DIE = {
    "ingest": ("ingest.before_append", "ingest.after_append", "ingest.mid_group"),
    "collector": (
        "collector.after_read",
        "collector.before_commit",
        "collector.cut_on_commit",
        "collector.after_commit",
        "collector.after_ack",
    ),
    "keeper": ("keeper.mid_merge", "keeper.after_merge", "keeper.between_pieces"),
}
"""Points that the load reaches, by role."""

FAIL = (*DIE["ingest"], *DIE["collector"])


def at(failpoint: str) -> Act:
    """Return what does one failpoint, as `name:action:probability`."""
    name, action, _ = failpoint.split(":")
    move = {"crash": _die, "hang": _hang, "error": _fail}[action]
    return partial(move, name=name, failpoint=failpoint)


async def _die(faults: Faults, dice: random.Random, name: str, failpoint: str) -> None:
    async with faults.fault(f"die at {name}"):
        await _reach(faults, name, failpoint)


async def _hang(faults: Faults, dice: random.Random, name: str, failpoint: str) -> None:
    """Stand still there while the others go on; then die."""
    async with faults.fault(f"hang at {name}"):
        await _reach(faults, name, failpoint)
        await faults.hold(HANG_S)
        pid = faults.up.process(_role(name)).pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)


async def _fail(faults: Faults, dice: random.Random, name: str, failpoint: str) -> None:
    """Fail there now and then for a while; a kill ends it."""
    async with faults.fault(f"fail at {name}"):
        await _arm(faults, name, failpoint)
        await faults.hold(FAIL_S)
        faults.up.arm("")
    await faults.kill(_role(name))


async def _arm(faults: Faults, name: str, failpoint: str) -> None:
    pid = await faults.up.ready(_role(name))
    faults.up.arm(failpoint)
    if _role(name) == "keeper":
        await _end_leases(faults)
    os.kill(pid, signal.SIGTERM)


async def _end_leases(faults: Faults) -> None:
    """As if the minute was over for which a killed keeper's lease keeps others from its work."""
    async with await psycopg.AsyncConnection.connect(faults.up.superuser()) as connection:
        await connection.execute("delete from logweir.leases")


async def _reach(faults: Faults, name: str, failpoint: str) -> None:
    """Arm a point, and disarm it when it was reached."""
    before = _reached(faults, name)

    async def is_reached() -> bool:
        return _reached(faults, name) > before

    try:
        await _arm(faults, name, failpoint)
        await until(is_reached, f"{name} is not reached", REACHED_S)
    finally:
        faults.up.arm("")


def _reached(faults: Faults, name: str) -> int:
    return faults.up.log(_role(name)).count(f'"point":"{name}"')


def _role(name: str) -> str:
    return name.partition(".")[0]


async def _die_somewhere(faults: Faults, dice: random.Random, role: str) -> None:
    point, probability = dice.choice(DIE[role]), dice.choice((0.2, 1))
    await at(f"{point}:crash:{probability}")(faults, dice)


async def _fail_somewhere(faults: Faults, dice: random.Random) -> None:
    await at(f"{dice.choice(FAIL)}:error:0.3")(faults, dice)


NEEDS = frozenset({"ingest", "collector", "keeper", "supervisor"})
"""One at a time: what is armed is in one file, which any role may read that starts."""

MOVES = {
    "ingest dies at a failpoint": Move(2, partial(_die_somewhere, role="ingest"), NEEDS),
    "collector dies at a failpoint": Move(3, partial(_die_somewhere, role="collector"), NEEDS),
    "keeper dies at a failpoint": Move(1, partial(_die_somewhere, role="keeper"), NEEDS),
    "errors at a failpoint": Move(2, _fail_somewhere, NEEDS),
    "values are refused": Move(1, at("collector.refusal:error:0.6"), NEEDS),
    "collector asleep in a commit": Move(1, at("collector.before_commit:hang:1"), NEEDS),
}
"""Those of a schedule."""
