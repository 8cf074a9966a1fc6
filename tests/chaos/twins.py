"""Two collectors where one is planned: beside each other, and on the same block."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import psycopg
from chaos.faults import Faults, Move, until
from chaos.kills import DIRECTED, stalled_commit, writers

from logweir.core import names
from logweir.standalone import servers

CLAIM_S = 150.0
"""Blocks of a collector that never comes back are taken over after 90 s, and that is part of it."""


@contextlib.asynccontextmanager
async def _twin(faults: Faults, consumer: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Run one more collector, as its pod would; leaving ends it in order, if it lives."""
    process = _start(faults, consumer)
    try:
        yield process
    finally:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, 20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(faults: Faults, consumer: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "logweir.cli", "run", "collector"]
    command += ["--binding", str(faults.up.data.bindings / "collector.json")]
    command += ["--ops", f"{servers.LOOPBACK}:{servers.free_port()}", "--consumer", consumer]
    with (faults.up.folder / "twin.log").open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


async def _beside(faults: Faults, dice: random.Random) -> None:
    """Two share the pipeline for a while. When there is time, one dies with blocks in its hands
    and never comes back; else it ends in order."""
    consumer = f"twin-{dice.getrandbits(32):x}"
    await faults.up.ready("valkey")
    async with _twin(faults, consumer) as process:
        await until(_holds_blocks(faults, consumer), "the twin gets no blocks")
        async with faults.fault("two collectors"):
            await faults.hold(dice.uniform(0.5, 4.0))
            if faults.left_s > CLAIM_S:
                await until(_holds_blocks(faults, consumer), "the twin gets no blocks")
                process.send_signal(signal.SIGKILL)


def _holds_blocks(faults: Faults, consumer: str) -> Callable[[], Awaitable[bool]]:
    async def holds_blocks() -> bool:
        found = await faults.journal.xpending_range(
            f"{faults.prefix}q", names.CONSUMER_GROUP, "-", "+", 1, consumername=consumer
        )
        return bool(found)

    return holds_blocks


async def _on_one_block(faults: Faults, dice: random.Random) -> None:
    """A collector stands still within its transaction, another one has the same blocks: it waits
    for the first one's COMMIT, or is first when that connection is gone."""
    collector = await faults.up.ready("collector")
    async with (
        contextlib.AsyncExitStack() as ends,
        stalled_commit(faults) as connection,
        faults.stopped("collector", "two collectors on one block", collector),
    ):
        await connection.rollback()
        await ends.enter_async_context(_twin(faults, "collector-0"))
        await writers(connection, "wait_event_type = 'Lock'", wanted=True)
        if dice.random() < 0.5:
            await _end_idle(connection)
        await faults.hold(dice.uniform(0.2, 1.0))


async def _end_idle(connection: psycopg.AsyncConnection) -> None:
    await connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name = 'logweir collector' and state like 'idle in transaction%'"
    )


MOVES = {
    "two collectors": Move(3, _beside, frozenset({"twin", "clocks", "valkey"})),
    "two collectors on one block": Move(3, _on_one_block, DIRECTED | {"twin"}),
}
