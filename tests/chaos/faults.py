"""Faults under load: who is killed when, by a seed; and how long each takes to be back.

    schedule(seed) -> a move ... kill -9 -> a watch until the process is ready again

Besides kills at any moment there are directed ones, at the moments that lose or double records in
a system that is wrong: the journal dies while it holds a backlog, a commit is never acknowledged,
an append is never answered and then forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import msgspec
import psycopg
from chaos.history import FORGET, Fault, Log
from chaos.standing import Up
from redis import exceptions

WAIT_S = 20.0
GATHER_S = 0.4
"""How long the journal stands still: most producers wait for an answer then."""

LAST = "collector"
"""What it held is left to its successor, with no other fault to make it look for more."""


class Kill(msgspec.Struct):
    """One kill -9. `backlog` is what the journal held, -1 when nobody asked."""

    target: str
    at_s: float
    backlog: int = -1
    back_s: float | None = None


class Faults:
    """Does the moves of a schedule to a running `up`."""

    def __init__(self, up: Up, log: Log, seed: int) -> None:
        self.up, self._log = up, log
        self.dice = random.Random(f"{seed}/faults")
        self._journal = up.journal()
        self._prefix = up.prefix()
        self._watches: list[asyncio.Task[None]] = []
        self.kills: list[Kill] = []

    async def run(self, load_s: float) -> None:
        """Do all moves, spread over the load; return when everything is ready again."""
        await self.do([MOVES[name][1] for name in schedule(self.dice)], load_s)

    async def do(self, moves: Sequence[Act], load_s: float) -> None:
        """Do these, in their order."""
        begin_s, step_s = time.monotonic(), load_s / len(moves)
        try:
            for number, move in enumerate(moves):
                due_s = begin_s + (number + self.dice.uniform(0.1, 0.9)) * step_s
                await asyncio.sleep(max(0.1, due_s - time.monotonic()))
                await move(self)
            await asyncio.gather(*self._watches)
            await self.up.all_ready()
        finally:
            for watch in self._watches:
                watch.cancel()
            await asyncio.gather(*self._watches, return_exceptions=True)
            await self._journal.aclose()

    # ---- moves -------------------------------------------------------------------------------

    async def kill(self, target: str, backlog: int = -1) -> None:
        pid = await self.up.ready(target)
        os.kill(pid, signal.SIGKILL)
        self.say(f"kill {target}" + (f" at a backlog of {backlog}" if backlog >= 0 else ""))
        kill = Kill(target, time.monotonic(), backlog)
        self.kills.append(kill)
        self._watches.append(asyncio.create_task(self._watch(kill, pid)))

    async def _watch(self, kill: Kill, pid: int) -> None:
        await self.up.ready(kill.target, not_pid=pid)
        kill.back_s = time.monotonic() - kill.at_s

    async def _with_backlog(self, *targets: str) -> None:
        """Kill these while the journal holds entries, for the collector stands still."""
        collector = await self.up.ready("collector")
        await self.up.ready("valkey")
        os.kill(collector, signal.SIGSTOP)
        self.say("stop collector")
        backlog = await self._backlog()
        for target in targets:
            await self.kill(target, backlog)
        if "collector" not in targets:
            os.kill(collector, signal.SIGCONT)
            self.say("continue collector")

    async def _postgres_then_valkey(self) -> None:
        await self.up.ready("valkey")
        await self.kill("postgres")
        await self.kill("valkey", await self._backlog())

    async def _half_a_commit(self) -> None:
        """Kill the collector within its transaction: what it did not commit comes again."""
        async with self._stalled_commit():
            await self.kill("collector", await self._entries())

    async def _commit_without_ack(self) -> None:
        """Kill both when a commit has taken place and its ack has not: the blocks come again."""
        async with self._stalled_commit() as connection:
            backlog = await self._entries()
            os.kill(await self.up.ready("valkey"), signal.SIGSTOP)
            self.say("stop valkey, a commit is on its way")
            await connection.rollback()
            await _poll(connection, "state <> 'idle'", wanted=False)
        for target in ("valkey", "collector"):
            await self.kill(target, backlog)

    @contextlib.asynccontextmanager
    async def _stalled_commit(self) -> AsyncIterator[psycopg.AsyncConnection]:
        """Yield when a collector has sent all of a transaction but its end; leaving lets it go."""
        for name in ("postgres", "collector", "valkey"):
            await self.up.ready(name)
        async with await psycopg.AsyncConnection.connect(self.up.superuser()) as connection:
            await connection.execute("lock table usage in exclusive mode")
            await _poll(connection, "wait_event_type = 'Lock'", wanted=True)
            yield connection
            await connection.rollback()

    async def _append_without_answer(self) -> None:
        """Kill ingest when the journal has taken blocks and nobody was told: all come again."""
        await self._stop_ingest_after_append()
        await self.kill("ingest")

    async def _forgotten_append(self) -> None:
        """The same, but the journal does not know them any more either: only the ledger does."""
        await self._stop_ingest_after_append()
        await self._forget()
        await self.kill("ingest")

    async def _stop_ingest_after_append(self) -> None:
        """While the journal stands still, appends gather before it; then ingest does, and the
        journal takes them all."""
        ingest = await self.up.ready("ingest")
        valkey = await self.up.ready("valkey")
        before = await self._appends()
        os.kill(valkey, signal.SIGSTOP)
        self.say("stop valkey")
        await asyncio.sleep(GATHER_S)
        os.kill(ingest, signal.SIGSTOP)
        os.kill(valkey, signal.SIGCONT)
        # The death of a client takes away what the server has not read of it yet.
        taken = await self._settled_appends() - before
        self.say(f"stop ingest, continue valkey: {taken} blocks without an answer")

    async def _settled_appends(self) -> int:
        """Wait until the journal has taken all that was sent to it; return its count."""
        deadline_s = time.monotonic() + WAIT_S
        before, now = -1, await self._appends()
        while now != before and time.monotonic() < deadline_s:
            await asyncio.sleep(0.1)
            before, now = now, await self._appends()
        return now

    async def _forget(self) -> None:
        keys = [key async for key in self._journal.scan_iter(match=f"{self._prefix}i:*", count=500)]
        if keys:
            await self._journal.unlink(*keys)
        self.say(FORGET)

    # ---- help --------------------------------------------------------------------------------

    async def _backlog(self) -> int:
        """Wait until the journal holds some entries, and return how many."""
        deadline_s = time.monotonic() + WAIT_S
        wanted = self.dice.randint(3, 60)
        while (found := await self._entries()) < wanted:
            assert time.monotonic() < deadline_s, "no backlog comes"
            await asyncio.sleep(0.01)
        return found

    async def _entries(self) -> int:
        try:
            return int(await self._journal.xlen(f"{self._prefix}q"))
        except (exceptions.RedisError, OSError):
            return 0

    async def _appends(self) -> int:
        """How many blocks the journal has ever taken."""
        return int(await self._journal.hget(f"{self._prefix}c", "seq") or 0)

    def say(self, what: str) -> None:
        self._log.write(Fault(time.time(), what))


async def _poll(connection: psycopg.AsyncConnection, condition: str, *, wanted: bool) -> None:
    """Wait until some or none of the tenant's writers are in a state."""
    query = (
        "select count(*) from pg_stat_activity"
        f" where application_name = 'logweir collector' and {condition}"
    )
    deadline_s = time.monotonic() + WAIT_S
    while True:
        await connection.execute("select pg_stat_clear_snapshot()")  # one lasts a transaction
        cursor = await connection.execute(query)
        row = await cursor.fetchone()
        if bool(row and row[0]) == wanted:
            return
        assert time.monotonic() < deadline_s, f"waited in vain for writers: {condition} {wanted}"
        await asyncio.sleep(0.02)


Act = Callable[[Faults], Awaitable[None]]

MOVES: dict[str, tuple[int, Act]] = {
    "ingest": (2, lambda faults: faults.kill("ingest")),
    "collector": (2, lambda faults: faults.kill("collector")),
    "postgres": (3, lambda faults: faults.kill("postgres")),
    "valkey": (1, lambda faults: faults.kill("valkey")),
    "valkey with a backlog": (2, lambda faults: faults._with_backlog("valkey")),
    "postgres, then valkey with a backlog": (2, Faults._postgres_then_valkey),
    "both with a backlog": (1, lambda faults: faults._with_backlog("collector", "valkey")),
    "collector within a commit": (2, Faults._half_a_commit),
    "both between commit and ack": (2, Faults._commit_without_ack),
    "ingest between append and answer": (2, Faults._append_without_answer),
    "ingest between append and answer, and its markers": (2, Faults._forgotten_append),
}
"""How often each comes, and what does it; with the last one 27 kills."""


def schedule(dice: random.Random) -> list[str]:
    """Shuffle all moves; those of one name do not follow each other where that can be avoided."""
    left = [name for name, (count, _) in MOVES.items() for _ in range(count)]
    dice.shuffle(left)
    found: list[str] = []
    while left:
        others = [one for one in left if not found or one != found[-1]]
        found.append(dice.choice(others or left))
        left.remove(found[-1])
    return [*found, LAST]


def table(kills: list[Kill]) -> list[str]:
    """Kills by target, with the longest time that one took to be back."""
    lines = []
    for target in sorted({one.target for one in kills}):
        some = [one for one in kills if one.target == target]
        longest = max((one.back_s or 0.0 for one in some), default=0.0)
        held = sum(one.backlog > 0 for one in some)
        note = f", {held} of them at a backlog" if held else ""
        lines.append(
            f"  {target:<12} killed {len(some):>3} times, longest away {longest:5.1f} s{note}"
        )
    return lines
