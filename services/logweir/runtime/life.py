"""The life of a role process: start, readiness, SIGTERM, an orderly end.

run(main) -> main(life) ... life.stopping is set by SIGTERM or SIGINT ... main returns
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import signal
from collections.abc import Awaitable, Callable
from typing import Any, Final

import uvloop

logger = logging.getLogger(__name__)

CANCEL_AGAIN_S: Final = 0.5

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
"""As in malloc.h of glibc."""


class Life:
    """Handed to everything in a role that must know whether it is ready or stopping."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self._parts: dict[str, str] = {}

    def expect(self, *parts: str) -> None:
        """Name parts that must report before the role is ready."""
        for part in parts:
            self._parts.setdefault(part, "starting")

    def report(self, part: str, problem: str = "") -> None:
        """Say that a part works (no problem) or why it does not; logged when it changes."""
        before = self._parts.get(part)
        self._parts[part] = problem
        if before != problem:
            level = logging.WARNING if problem else logging.INFO
            logger.log(level, "part changed", extra={"part": part, "problem": problem})

    def forget(self, part: str) -> None:
        """Take a part off the list; it is not served any more."""
        self._parts.pop(part, None)

    def problems(self) -> dict[str, str]:
        """Return the parts that do not work, each with its reason; empty when ready."""
        found = {part: problem for part, problem in self._parts.items() if problem}
        if self.stopping.is_set():
            found["process"] = "stopping"
        return found

    async def pause(self, wait_s: float) -> bool:
        """Wait, or until the process stops; true when it stops."""
        return await happens(self.stopping, wait_s)

    async def pause_until(self, event: asyncio.Event, wait_s: float) -> bool:
        """Wait until an event, or as `pause`."""
        waiting = [asyncio.create_task(event.wait()), asyncio.create_task(self.stopping.wait())]
        try:
            await asyncio.wait(waiting, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
        return self.stopping.is_set()


async def happens(event: asyncio.Event, wait_s: float) -> bool:
    """Wait for an event, but no longer; true when it has happened."""
    try:
        async with asyncio.timeout(wait_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, and again until they have ended: what they wait in may swallow a cancellation
    (redis-py's sends do, in `asyncio.wait_for` of Python 3.11)."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)


def run(main: Callable[[Life], Awaitable[None]]) -> None:
    """Run `main` until it returns; SIGTERM and SIGINT set `life.stopping`."""

    async def outer() -> None:
        life = Life()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, life.stopping.set)
        await main(life)

    uvloop.run(outer())


def keep_freed_memory() -> None:
    """Tell glibc to use freed memory again instead of handing it back: columns of some megabytes
    come and go, and to get each anew from the kernel costs a third of a segment's making."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 4 << 20)
        mallopt(_M_TRIM_THRESHOLD, 16 << 20)


def share_one_heap() -> None:
    """Tell glibc to take the memory of all threads from one heap: what a thread of a process that
    computes in one thread at a time frees, the others use again."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
