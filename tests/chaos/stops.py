"""Silence: processes that stand still, and networks that carry nothing, or only one way.

A process that stands still is no cut network: its kernel goes on taking and sending bytes.
"""

from __future__ import annotations

import random
from functools import partial

from chaos.faults import PROCESSES, Faults, Move
from chaos.proxy import LINKS


async def _short(faults: Faults, dice: random.Random, name: str) -> None:
    async with faults.stopped(name):
        await faults.hold(dice.uniform(0.2, 1.5))


async def _long(faults: Faults, dice: random.Random) -> None:
    """Long enough for deadlines to pass; the supervisor ends what gives no answer for a minute."""
    name = dice.choice(PROCESSES)
    async with faults.stopped(name, f"SIGSTOP {name}, long"):
        await faults.hold(dice.uniform(*faults.long_s))


async def _cut(faults: Faults, dice: random.Random, link: str) -> None:
    """The line goes silent or mute for a while; then what was held arrives, or is gone for good."""
    word = dice.choice(("silent", "silent", "mute"))
    end = dice.choice(("flow", "cut"))
    hold_s = dice.choice((0.2, 1.0, 3.0, 6.0)) * dice.uniform(0.7, 1.3)
    tell = faults.up.proxy.tell
    async with faults.fault(f"cut {link}", f"{word} for {hold_s:.1f} s, then {end}"):
        tell(link, word)
        try:
            await faults.hold(hold_s)
        finally:
            if end == "cut":
                tell(link, "cut")
            tell(link, "flow")


MOVES = {
    **{
        f"stop {name}": Move(3, partial(_short, name=name), frozenset({name})) for name in PROCESSES
    },
    "stop one for long": Move(4, _long, frozenset(PROCESSES)),
    **{f"cut {link}": Move(4, partial(_cut, link=link), frozenset({link})) for link in LINKS},
}
