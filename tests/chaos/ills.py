"""Servers that are ill: a full disk, a slow one, no memory, a torn journal, a clock that steps."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
from collections.abc import Awaitable, Callable
from functools import partial

import psutil
from chaos import shims
from chaos.faults import Faults, Move, NotDoneError, until
from chaos.history import FORGET
from chaos.kills import DIRECTED

from logweir.core import names

OURS = b"collector-0"
"""The consumer that the collector of `up` is."""

SPARE_BYTES = 256 << 10
"""A disk cannot be made smaller than what it holds, and that grows meanwhile."""


async def _full_disk(faults: Faults, dice: random.Random, name: str) -> None:
    """No room for some seconds. Valkey ends at the first write, and cannot start; PostgreSQL
    refuses, or panics when it is the log that finds no room."""
    await faults.up.ready(name)
    whole_bytes = faults.up.disks[name]
    place = faults.up.inside(faults.up.data.path / name)
    async with faults.fault(f"disk full {name}"):
        try:
            for _ in range(20):
                found = os.statvfs(place)
                used_bytes = (found.f_blocks - found.f_bfree) * found.f_frsize
                try:
                    await asyncio.to_thread(faults.up.resize, name, used_bytes + SPARE_BYTES)
                    break
                except subprocess.CalledProcessError:
                    continue
            else:
                raise NotDoneError("the disk grows too fast")
            await faults.hold(dice.uniform(2.0, 5.0))
        finally:
            await asyncio.to_thread(faults.up.resize, name, whole_bytes)


async def _slow_disk(faults: Faults, dice: random.Random, name: str) -> None:
    assert faults.up.shims is not None
    fsync_ms = dice.choice((50, 500, 3000))
    async with faults.fault(f"slow fsync {name}", f"{fsync_ms} ms"):
        faults.up.shims.slow(name, fsync_ms)
        try:
            await faults.hold(dice.uniform(2.0, 5.0))
        finally:
            faults.up.shims.slow(name, 0)


async def _no_memory(faults: Faults, dice: random.Random) -> None:
    """The journal takes nothing more; collectors must be able to drain it all the same."""
    for name in ("valkey", "collector", "postgres"):
        await faults.up.ready(name)
    before = (await faults.journal.config_get("maxmemory"))["maxmemory"]
    async with faults.stopped("collector"):
        await faults.backlog(dice)
    async with faults.fault("maxmemory valkey"):
        await faults.journal.config_set("maxmemory", 1 << 20)
        try:
            try:
                await until(_is_drained(faults), "a full journal is not drained")
            except NotDoneError as error:
                faults.wrongs.append(str(error))
            await faults.hold(dice.uniform(0.5, 2.0))
        finally:
            await faults.journal.config_set("maxmemory", before)


def _is_drained(faults: Faults) -> Callable[[], Awaitable[bool]]:
    async def is_drained() -> bool:
        """All is committed but what collectors that are dead for less than 90 s had taken."""
        pending = await faults.journal.xpending(f"{faults.prefix}q", names.CONSUMER_GROUP)
        left = sum(one["pending"] for one in pending["consumers"] if one["name"] != OURS)
        return await faults.entries() <= left

    return is_drained


_TORN = (
    b"*3\r\n$4\r\nHSET\r\n$20\r\nhalf",
    b"*1\r\n$5\r\nMULTI\r\n*2\r\n$3\r\nDEL\r\n$4\r\nhalf\r\n",
    b"*1\r\n$5\r\nMULTI\r\n*",
)
"""How a log may end after a power cut: within a command, or within a transaction."""


async def _torn_tail(faults: Faults, dice: random.Random) -> None:
    """Kill the journal with a backlog, and append half a command before it is started again."""
    up = faults.up
    await up.ready("valkey")
    async with faults.stopped("collector"):
        backlog = await faults.backlog(dice)
        supervisor = up.shown().pid
        valkey = await up.ready("valkey")
        if not supervisor:
            raise NotDoneError("no supervisor")
        async with faults.fault("torn tail valkey") as one:
            one.backlog = backlog
            os.kill(supervisor, signal.SIGSTOP)
            try:
                os.kill(valkey, signal.SIGKILL)
                await until(_is_gone(valkey), "valkey does not end")
                folder = up.inside(up.data.path / "valkey" / "appendonlydir")
                tail = max(
                    folder.glob("*.incr.aof"), key=lambda path: int(path.name.split(".")[-3])
                )
                with tail.open("ab") as file:
                    file.write(dice.choice(_TORN))
            finally:
                os.kill(supervisor, signal.SIGCONT)


def _is_gone(pid: int) -> Callable[[], Awaitable[bool]]:
    async def is_gone() -> bool:
        """Ended, though the stopped supervisor has not asked for its end yet."""
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return is_gone


async def _clock(faults: Faults, dice: random.Random) -> None:
    """The wall clock of one process, or of all, steps and later steps back."""
    assert faults.up.shims is not None
    names = dice.choice((*[(name,) for name in shims.SLOTS], shims.SLOTS))
    by_s = dice.choice((-3600, -300, 300, 3600)) + dice.uniform(-60, 60)
    who = names[0] if len(names) == 1 else "all"
    async with faults.fault(f"clock {who}", f"{by_s:+.0f} s"):
        for name in names:
            faults.up.shims.step(name, by_s)
        if "valkey" in names:
            faults.say(FORGET)  # markers are found by the time that the journal's server has
        try:
            await faults.hold(dice.uniform(2.0, 6.0))
        finally:
            for name in names:
                faults.up.shims.step(name, 0)
            if "valkey" in names:
                faults.say(FORGET)


MOVES = {
    "maxmemory": Move(3, _no_memory, DIRECTED),
    "torn tail": Move(3, _torn_tail, DIRECTED),
}
SHIMMED = {
    "clock": Move(10, _clock, frozenset({"clocks"})),
    "slow fsync postgres": Move(4, partial(_slow_disk, name="postgres"), frozenset({"fsync pg"})),
    "slow fsync valkey": Move(4, partial(_slow_disk, name="valkey"), frozenset({"fsync valkey"})),
}
FULL = {
    f"disk full {name}": Move(2, partial(_full_disk, name=name), frozenset({name}))
    for name in ("postgres", "valkey")
}
