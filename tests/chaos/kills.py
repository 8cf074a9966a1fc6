"""Kills: of any process at any moment, and of those that lose or double records in a system that
is wrong: the journal dies while it holds a backlog, a commit is never acknowledged, an append is
never answered and then forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator
from functools import partial

import psycopg
from chaos.faults import EVERYTHING, PROCESSES, WAIT_S, Faults, Move, until
from chaos.history import FORGET

GATHER_S = 0.4
"""How long the journal stands still: most producers wait for an answer then."""

DIRECTED = frozenset(
    {
        *("postgres", "valkey", "ingest", "collector", "gateway", "supervisor"),
        *("client-gateway", "ingest-valkey", "collector-valkey", "collector-postgres"),
    }
)
"""What a directed kill has for itself: its moment comes only while records flow."""


async def _any_moment(faults: Faults, dice: random.Random, name: str) -> None:
    await faults.kill(name)


async def _with_backlog(faults: Faults, dice: random.Random, *targets: str) -> None:
    """Kill these while the journal holds entries, for the collector stands still."""
    await faults.up.ready("valkey")
    async with faults.stopped("collector") as collector:
        backlog = await faults.backlog(dice)
        for target in targets:
            await faults.kill(target, collector if target == "collector" else 0, backlog)


async def _postgres_then_valkey(faults: Faults, dice: random.Random) -> None:
    await faults.up.ready("valkey")
    await faults.kill("postgres")
    await faults.kill("valkey", backlog=await faults.backlog(dice, most=12))


async def _half_a_commit(faults: Faults, dice: random.Random) -> None:
    """Kill the collector within its transaction: what it did not commit comes again."""
    collector = await faults.up.ready("collector")
    async with stalled_commit(faults):
        await faults.kill("collector", collector, await faults.entries())


async def _commit_without_ack(faults: Faults, dice: random.Random) -> None:
    """Kill both when a commit has taken place and its ack has not: the blocks come again."""
    collector = await faults.up.ready("collector")
    async with stalled_commit(faults) as connection:
        backlog = await faults.entries()
        async with faults.stopped("valkey") as valkey:
            await connection.rollback()
            await writers(connection, "state <> 'idle'", wanted=False)
            await faults.kill("valkey", valkey, backlog)
        await faults.kill("collector", collector)


@contextlib.asynccontextmanager
async def stalled_commit(faults: Faults) -> AsyncIterator[psycopg.AsyncConnection]:
    """Yield when a collector has sent all of a transaction but its end; leaving lets it go."""
    for name in ("postgres", "collector", "valkey"):
        await faults.up.ready(name)
    async with await psycopg.AsyncConnection.connect(faults.up.superuser()) as connection:
        await connection.execute("lock table usage in exclusive mode")
        await writers(connection, "wait_event_type = 'Lock'", wanted=True)
        yield connection
        await connection.rollback()


async def _append_without_answer(faults: Faults, dice: random.Random) -> None:
    """Kill ingest when the journal has taken blocks and nobody was told: all come again."""
    async with _appended(faults) as ingest:
        await faults.kill("ingest", ingest)


async def _forgotten_append(faults: Faults, dice: random.Random) -> None:
    """The same, but the journal does not know them any more either: only the ledger does."""
    async with _appended(faults) as ingest:
        await forget(faults)
        await faults.kill("ingest", ingest)


@contextlib.asynccontextmanager
async def _appended(faults: Faults) -> AsyncIterator[int]:
    """While the journal stands still, appends gather before it; then ingest does, and the
    journal takes them all. Yields the id of ingest."""
    await faults.up.ready("valkey")
    ingest = await faults.up.ready("ingest")
    async with contextlib.AsyncExitStack() as ingest_stands:
        async with faults.stopped("valkey"):
            await asyncio.sleep(GATHER_S)
            await ingest_stands.enter_async_context(faults.stopped("ingest", pid=ingest))
        # The death of a client takes away what the server has not read of it yet.
        await _settled_appends(faults)
        yield ingest


async def _settled_appends(faults: Faults) -> None:
    """Wait until the journal has taken all that was sent to it."""
    before = -1

    async def is_settled() -> bool:
        nonlocal before
        last = before
        before = int(await faults.journal.hget(f"{faults.prefix}c", "seq") or 0)
        return before == last

    await until(is_settled, "appends go on", every_s=0.1)


async def forget(faults: Faults) -> None:
    """Remove the journal's markers of requests."""
    keys = [key async for key in faults.journal.scan_iter(match=f"{faults.prefix}i:*", count=500)]
    if keys:
        await faults.journal.unlink(*keys)
    faults.say(FORGET)


async def _immediate_stop(faults: Faults, dice: random.Random) -> None:
    """What `pg_ctl stop -m immediate` does: the server leaves, and recovers as after a crash."""
    await faults.kill("postgres", number=signal.SIGQUIT)


async def _end_backend(faults: Faults, dice: random.Random, *, by_force: bool) -> None:
    """End one of the roles' connections within the server; by force it takes all with it."""
    await faults.up.ready("postgres")
    query = (
        "select pid from pg_stat_activity where application_name like 'logweir%'"
        " and application_name <> 'logweir operator' order by state = 'idle', random() limit 1"
    )
    async with await psycopg.AsyncConnection.connect(
        faults.up.superuser(), autocommit=True
    ) as connection:
        row = await (await connection.execute(query)).fetchone()
        if row is None:
            return
        async with faults.fault("SIGKILL a backend" if by_force else "pg_terminate_backend"):
            if by_force:
                os.kill(row[0], signal.SIGKILL)
            else:
                await connection.execute("select pg_terminate_backend(%s)", row)


async def _all_of_it(faults: Faults, dice: random.Random) -> None:
    """Kill the supervisor: everything goes down with it, and comes back by one command."""
    async with faults.fault("SIGKILL the supervisor"):
        await asyncio.to_thread(faults.up.kill)
        await asyncio.to_thread(faults.up.start)


async def writers(connection: psycopg.AsyncConnection, condition: str, *, wanted: bool) -> None:
    """Wait until some or none of the tenant's writers are in a state."""
    query = (
        "select count(*) from pg_stat_activity"
        f" where application_name = 'logweir collector' and {condition}"
    )

    async def is_so() -> bool:
        await connection.execute("select pg_stat_clear_snapshot()")  # one lasts a transaction
        row = await (await connection.execute(query)).fetchone()
        return bool(row and row[0]) == wanted

    await until(is_so, f"waited in vain for writers: {condition} {wanted}", WAIT_S)


_COUNTS = {"valkey": 1, "gateway": 4}
"""One that dies anew before it was ready for 20 s waits for up to 8 s: not too often, then."""

MOVES = {
    **{
        f"kill {name}": Move(
            _COUNTS.get(name, 3), partial(_any_moment, name=name), frozenset({name})
        )
        for name in PROCESSES
    },
    "kill valkey with a backlog": Move(
        3, lambda faults, dice: _with_backlog(faults, dice, "valkey"), DIRECTED
    ),
    "kill both with a backlog": Move(
        1, lambda faults, dice: _with_backlog(faults, dice, "collector", "valkey"), DIRECTED
    ),
    "kill postgres, then valkey with a backlog": Move(2, _postgres_then_valkey, DIRECTED),
    "kill collector within a commit": Move(3, _half_a_commit, DIRECTED),
    "kill both between commit and ack": Move(2, _commit_without_ack, DIRECTED),
    "kill ingest between append and answer": Move(2, _append_without_answer, DIRECTED),
    "the same, and its markers": Move(3, _forgotten_append, DIRECTED),
    "stop postgres at once": Move(4, _immediate_stop, frozenset({"postgres"})),
    "end a backend": Move(8, partial(_end_backend, by_force=False), frozenset({"postgres"})),
    "kill a backend": Move(3, partial(_end_backend, by_force=True), frozenset({"postgres"})),
    "kill all of it": Move(1, _all_of_it, EVERYTHING),
}
