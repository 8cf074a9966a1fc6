"""Faults at failpoints: a role dies, stands still or fails exactly where that can do harm.

    arm -> SIGTERM (it comes back armed) ... it reaches the point -> disarm -> it is back

What is armed is read when a role starts, so it is started anew first.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from functools import partial

from chaos.faults import Act, Faults, Kill

REACHED_S = 25.0
"""How long a point may be on its way, and a keeper until there is something to merge."""

HANG_S = 3.0
FAIL_S = 3.0

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

FAIL = (
    "collector.after_read",
    "collector.before_commit",
    "collector.cut_on_commit",
    "collector.after_commit",
    "collector.after_ack",
    "ingest.before_append",
    "ingest.after_append",
    "ingest.mid_group",
)


def at(failpoint: str) -> Act:
    """Return the move of one failpoint, as `name:action:probability`."""
    name, action, _ = failpoint.split(":")
    move = {"crash": _die, "hang": _hang, "error": _fail}[action]
    return partial(move, name=name, failpoint=failpoint)


async def _die(faults: Faults, name: str, failpoint: str) -> None:
    await _reach(faults, name, failpoint)
    faults.kills.append(Kill(f"{_role(name)} at {name}", time.monotonic()))


async def _hang(faults: Faults, name: str, failpoint: str) -> None:
    """Stand still there while the others go on; then die."""
    await _reach(faults, name, failpoint)
    await asyncio.sleep(HANG_S)
    pid = faults.up.process(_role(name)).pid
    assert pid, "what stands still cannot have ended"
    os.kill(pid, signal.SIGKILL)
    faults.kills.append(Kill(f"{_role(name)} at {name}", time.monotonic()))
    await faults.up.ready(_role(name), not_pid=pid)


async def _fail(faults: Faults, name: str, failpoint: str) -> None:
    """Fail there now and then for a while; a last kill ends it."""
    await _arm(faults, name, failpoint)
    await asyncio.sleep(FAIL_S)
    faults.up.arm("")
    await faults.kill(_role(name))


async def _arm(faults: Faults, name: str, failpoint: str) -> None:
    pid = await faults.up.ready(_role(name))
    faults.up.arm(failpoint)
    faults.say(f"arm {failpoint}")
    # In order: a killed keeper's lease would keep its successor from its work for a minute.
    os.kill(pid, signal.SIGTERM)


async def _reach(faults: Faults, name: str, failpoint: str) -> None:
    """Arm a point, and disarm it when it was reached."""
    before = _reached(faults, name)
    await _arm(faults, name, failpoint)
    deadline_s = time.monotonic() + REACHED_S
    while _reached(faults, name) <= before:
        assert time.monotonic() < deadline_s, f"{name} is never reached"
        await asyncio.sleep(0.02)
    faults.up.arm("")
    faults.say(f"reached {name}")


def _reached(faults: Faults, name: str) -> int:
    return faults.up.log(_role(name)).count(f'"point":"{name}"')


def _role(name: str) -> str:
    return name.partition(".")[0]


async def _die_somewhere(faults: Faults, role: str) -> None:
    point = faults.dice.choice(DIE[role])
    await at(f"{point}:crash:{faults.dice.choice((0.2, 1))}")(faults)


async def _fail_somewhere(faults: Faults) -> None:
    await at(f"{faults.dice.choice(FAIL)}:error:0.3")(faults)


MOVES: dict[str, tuple[int, Act]] = {
    "ingest at a failpoint": (2, partial(_die_somewhere, role="ingest")),
    "collector at a failpoint": (3, partial(_die_somewhere, role="collector")),
    "keeper at a failpoint": (1, partial(_die_somewhere, role="keeper")),
    "errors at a failpoint": (2, _fail_somewhere),
    "values refused": (1, at("collector.refusal:error:0.6")),
    "collector asleep in a commit": (1, at("collector.before_commit:hang:1")),
}
"""How often each comes in a schedule, and what does it."""
