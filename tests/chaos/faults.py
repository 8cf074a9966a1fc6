"""Faults under load: what is done to whom and when, by a seed.

    schedule(seed) -> moves (moves.py) -> faults ... each over -> recovery.py: when is all well?

A move is one or more faults that belong together, such as: stop the collector, wait until the
journal holds a backlog, kill the journal. Moves overlap unless they need the same process or link.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence

import msgspec
import psutil
import psycopg
from chaos.history import Fault, Log
from chaos.proxy import LINKS
from chaos.standing import Up
from redis import exceptions

WAIT_S = 20.0
ATTEMPTS = 3
"""How often a move looks for an occasion."""

AT_ONCE = 3
"""So many moves overlap at most."""

SEEN_S = 2.0
"""How long a move waits until the supervisor has seen an end: PostgreSQL may take its time."""

PAIRS = 0.3
"""The share of moves that begin within two seconds of the one before."""

ROLES = ("ingest", "collector", "query", "keeper", "operator", "gateway")
PROCESSES = (*ROLES, "postgres", "valkey")
EVERYTHING = frozenset({*PROCESSES, *LINKS, "supervisor"})


class NotDoneError(Exception):
    """A move that found no occasion; it is told, and counts for nothing."""


_NO_OCCASION = (
    NotDoneError,
    AssertionError,
    OSError,
    psutil.Error,
    psycopg.Error,
    exceptions.RedisError,
    TimeoutError,
)


class Move(msgspec.Struct, frozen=True):
    """A kind of move: how often it comes in a schedule, and what it has for itself meanwhile."""

    count: int
    act: Callable[[Faults, random.Random], Awaitable[None]]
    needs: frozenset[str] = frozenset()


class Done(msgspec.Struct):
    """One fault. Times are seconds of the wall clock; `end_s` is when it was over.

    `acked_s` and `stored_s` are how long after that a fresh record was acknowledged, and found in
    the store by its receipt; None when never.
    """

    kind: str
    at_s: float
    end_s: float | None = None
    acked_s: float | None = None
    stored_s: float | None = None
    backlog: int = -1


class Faults:
    """Does the moves of a schedule to a running `up`.

    Args:
        up: the installation, with its tenant open.
        log: gets a line for each fault.
        seed: of the schedule.
        moves: by name.
        follow: is told of each fault that is over.
        long_s: how long the long ones last, at least and at most.
    """

    def __init__(
        self,
        up: Up,
        log: Log,
        seed: int,
        moves: Mapping[str, Move],
        follow: Callable[[Done], None],
        long_s: tuple[float, float] = (4.0, 7.0),
    ) -> None:
        self.up, self.journal, self.prefix = up, up.journal(), up.prefix()
        self.long_s = long_s
        self.done: list[Done] = []
        self.not_done: list[str] = []
        self.came: Counter[str] = Counter()
        self.wrongs: list[str] = []
        self._log, self._seed, self._moves, self._follow = log, seed, moves, follow
        self._locks = {name: asyncio.Lock() for name in sorted(_needed(moves.values()))}
        self._room = asyncio.Semaphore(AT_ONCE)
        self._end_s = 0.0
        self._stop = asyncio.Event()

    async def run(self, load_s: float, stop: asyncio.Event) -> None:
        """Do all moves, spread over the load; return when everything is ready again."""
        dice = random.Random(f"{self._seed}/faults")
        names = schedule(dice, self._moves)
        begin_s, step_s = time.monotonic(), load_s / len(names)
        self._end_s, self._stop = begin_s + load_s, stop
        due_s = begin_s
        try:
            async with asyncio.TaskGroup() as tasks:
                for number, name in enumerate(names):
                    is_pair = dice.random() < PAIRS
                    late_s = dice.uniform(0.1, 0.9) * step_s
                    due_s = due_s + dice.random() if is_pair else begin_s + number * step_s + late_s
                    await self.hold(max(0.05, due_s - time.monotonic()))
                    if stop.is_set():
                        break
                    await self._room.acquire()
                    tasks.create_task(self._do(number, name))
            await self.up.all_ready()
        finally:
            await self.journal.aclose()

    async def one_by_one(self, names: Sequence[str], every_s: float) -> None:
        """Do these moves in their order, each when the one before has ended."""
        try:
            for number, name in enumerate(names):
                await asyncio.sleep(every_s)
                await self._room.acquire()
                await self._do(number, name)
            await self.up.all_ready()
        finally:
            await self.journal.aclose()

    async def _do(self, number: int, name: str) -> None:
        move = self._moves[name]
        try:
            async with contextlib.AsyncExitStack() as held:
                for one in sorted(move.needs):
                    await held.enter_async_context(self._locks[one])
                for attempt in range(ATTEMPTS):
                    dice = random.Random(f"{self._seed}/{number}/{name}/{attempt}")
                    if await self._try(name, move, dice):
                        break
        finally:
            self._room.release()

    async def _try(self, name: str, move: Move, dice: random.Random) -> bool:
        """Do a move; false when there was no occasion for it."""
        try:
            await move.act(self, dice)
        except _NO_OCCASION as error:
            self.not_done.append(f"{name}: {type(error).__name__} {error}"[:300])
            self.say(f"not done: {name}")
            self.came[name] += 0
            return False
        self.came[name] += 1
        return True

    @property
    def never(self) -> list[str]:
        """Moves that were tried, and never came about."""
        return [name for name, count in self.came.items() if not count]

    @property
    def left_s(self) -> float:
        """How long the load goes on."""
        return self._end_s - time.monotonic()

    # ---- faults ------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def fault(self, kind: str, detail: str = "") -> AsyncIterator[Done]:
        """A fault that lasts as long as the block does."""
        one = Done(kind, time.time())
        self.done.append(one)
        self.say(f"{kind} {detail}".rstrip())
        try:
            yield one
        finally:
            self.over(one)
            self.say(f"over: {kind}")

    def over(self, one: Done) -> None:
        one.end_s = time.time()
        self._follow(one)

    async def kill(
        self, name: str, pid: int = 0, backlog: int = -1, number: int = signal.SIGKILL
    ) -> None:
        """Kill a process, and return when the supervisor has seen it.

        One that was stopped is not ready, and is named by its id.
        """
        found = pid or await self.up.ready(name)
        os.kill(found, number)
        one = Done(f"{signal.Signals(number).name} {name}", time.time(), backlog=backlog)
        self.done.append(one)
        self.say(f"kill {name}" + (f" at a backlog of {backlog}" if backlog >= 0 else ""))
        self.over(one)
        with contextlib.suppress(NotDoneError):
            await until(self._is_seen(name, found), "its end is not seen", SEEN_S)

    @contextlib.asynccontextmanager
    async def stopped(self, name: str, kind: str = "", pid: int = 0) -> AsyncIterator[int]:
        """SIGSTOP a process with all that it has started; SIGCONT at the end. Yields its id.

        One that waits for another that stands still is not ready, and is named by its id.
        """
        pid = pid or await self.up.ready(name)
        family = self.up.family(name)
        async with self.fault(kind or f"SIGSTOP {name}"):
            try:
                for one in family:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.suspend()
                yield pid
            finally:
                for one in family:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.resume()

    async def hold(self, wait_s: float) -> None:
        """Let a fault last, unless all of it is to end."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), wait_s)

    # ---- help --------------------------------------------------------------------------------

    async def backlog(self, dice: random.Random, most: int = 60) -> int:
        """Wait until the journal holds some entries, and return how many."""
        wanted = dice.randint(3, most)
        await until(self._holds(wanted), "no backlog comes")
        return await self.entries()

    def _is_seen(self, name: str, pid: int) -> Callable[[], Awaitable[bool]]:
        async def is_seen() -> bool:
            return self.up.process(name).pid != pid

        return is_seen

    def _holds(self, wanted: int) -> Callable[[], Awaitable[bool]]:
        async def holds() -> bool:
            return await self.entries() >= wanted

        return holds

    async def entries(self) -> int:
        """How many entries the journal holds; 0 when it does not say."""
        try:
            return int(await self.journal.xlen(f"{self.prefix}q"))
        except (exceptions.RedisError, OSError):
            return 0

    def say(self, what: str) -> None:
        self._log.write(Fault(time.time(), what))


async def until(
    true: Callable[[], Awaitable[bool]], problem: str, wait_s: float = WAIT_S, every_s: float = 0.02
) -> None:
    deadline_s = time.monotonic() + wait_s
    while not await true():
        if time.monotonic() >= deadline_s:
            raise NotDoneError(problem)
        await asyncio.sleep(every_s)


def _needed(moves: Iterable[Move]) -> set[str]:
    return {one for move in moves for one in move.needs}


def schedule(dice: random.Random, moves: Mapping[str, Move]) -> list[str]:
    """Shuffle all moves; those of one name do not follow each other where that can be avoided."""
    left = [name for name, move in moves.items() for _ in range(move.count)]
    dice.shuffle(left)
    found: list[str] = []
    while left:
        others = [one for one in left if not found or one != found[-1]]
        found.append(dice.choice(others or left))
        left.remove(found[-1])
    return found
