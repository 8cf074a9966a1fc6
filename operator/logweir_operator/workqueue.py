"""Work to do, by key: each key once, one worker a key, failures later and later.

    add(key) -> waiting -> worker -> done | again in s | failed: 1 s, 2 s, ... 5 min

A key that is added while it is in work runs once more afterwards. First come, first served, so a
key that changes all the time holds up no other.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

import msgspec

logger = logging.getLogger(__name__)

FIRST_RETRY_S: Final = 1.0
LAST_RETRY_S: Final = 300.0
JITTER: Final = 0.2

Item = TypeVar("Item")


class Again(msgspec.Struct, frozen=True):
    """What a worker answers: look at the key again after `after_s`; None: when it changes."""

    after_s: float | None = None


class FailedError(Exception):
    """A key cannot be done now; its reason has been said on its object already.

    `is_final`: it is not to be tried again before it changes.
    """

    def __init__(self, message: str, *, is_final: bool = False, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.is_final = is_final
        self.after_s = after_s


def retry_s(failures: int, chance: float) -> float:
    """Return how long the next try waits after so many failures in a row.

    Args:
        failures: 1 for the first one.
        chance: in [0, 1), for the jitter of a fifth to both sides.
    """
    wait_s = min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(failures - 1, 16))
    return wait_s * (1 + JITTER * (2 * chance - 1))


class WorkQueue(Generic[Item]):
    """Keys that wait, keys in work, keys that come back later."""

    def __init__(self, work: Callable[[Item], Awaitable[Again]], workers: int) -> None:
        self._work = work
        self._workers = workers
        self._waiting: dict[Item, float] = {}  # since when, in the loop's clock; in order of coming
        self._in_work: dict[Item, float] = {}
        self._dirty: set[Item] = set()
        self._failures: dict[Item, int] = {}
        self._timers: list[tuple[float, int, Item]] = []
        self._due: dict[Item, float] = {}
        self._count = 0
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._in_work)

    def oldest_s(self) -> float:
        """Return how long the oldest key waits or is in work."""
        begun = [*self._waiting.values(), *self._in_work.values()]
        return asyncio.get_running_loop().time() - min(begun) if begun else 0.0

    def add(self, key: Item) -> None:
        """Do a key as soon as somebody is free."""
        self._due.pop(key, None)
        if key in self._in_work:
            self._dirty.add(key)
        elif key not in self._waiting:
            self._waiting[key] = asyncio.get_running_loop().time()
            self._changed.set()

    def add_later(self, key: Item, after_s: float) -> None:
        """Do a key after a while, unless it is done before."""
        if key in self._waiting or key in self._dirty:
            return
        at_s = asyncio.get_running_loop().time() + after_s
        if self._due.get(key, at_s + 1) <= at_s:
            return
        self._due[key] = at_s
        self._count += 1
        heapq.heappush(self._timers, (at_s, self._count, key))
        self._changed.set()

    async def run(self) -> None:
        """Work until cancelled."""
        free = asyncio.Semaphore(self._workers)
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._changed.clear()
                next_s = self._wake_up()
                if not self._waiting:
                    try:
                        async with asyncio.timeout(next_s):
                            await self._changed.wait()
                    except TimeoutError:
                        pass
                    continue
                await free.acquire()
                if not self._waiting:
                    free.release()
                    continue
                key = next(iter(self._waiting))
                self._in_work[key] = self._waiting.pop(key)
                tasks.create_task(self._do(key, free))

    def _wake_up(self) -> float | None:
        """Take what is due from the timers; return in how many seconds the next one is."""
        now_s = asyncio.get_running_loop().time()
        while self._timers:
            at_s, _, key = self._timers[0]
            if self._due.get(key) != at_s:  # it was done, or put off, since
                heapq.heappop(self._timers)
            elif at_s <= now_s:
                heapq.heappop(self._timers)
                self.add(key)
            else:
                return at_s - now_s
        return None

    async def _do(self, key: Item, free: asyncio.Semaphore) -> None:
        again: float | None = None
        try:
            answer = await self._work(key)
            self._failures.pop(key, None)
            again = answer.after_s
        except FailedError as error:
            again = None if error.is_final else max(error.after_s, self._failed(key))
        except Exception:
            logger.exception("reconcile failed", extra={"key": key})
            again = self._failed(key)
        finally:
            self._in_work.pop(key, None)
            free.release()
            if key in self._dirty:
                self._dirty.discard(key)
                self.add(key)
            elif again is not None:
                self.add_later(key, again)
            self._changed.set()

    def _failed(self, key: Item) -> float:
        self._failures[key] = self._failures.get(key, 0) + 1
        return retry_s(self._failures[key], random.random())  # noqa: S311 - spreads load
