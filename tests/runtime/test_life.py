"""The life of a role process: signals and pauses."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

from logweir.runtime import life
from logweir.runtime.life import Life

PROGRAM = """
from logweir.runtime import life
async def main(running):
    print("up", flush=True)
    await running.stopping.wait()
    print("finished", flush=True)
life.run(main)
"""


def test_sigterm_lets_a_role_finish():
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        os.kill(process.pid, signal.SIGTERM)
        rest = process.stdout.read()

    assert (first, rest, process.returncode) == ("up\n", "finished\n", 0)


async def test_a_pause_ends_early_when_the_process_stops():
    life = Life()
    life.stopping.set()

    assert await life.pause(60) is True


async def test_a_pause_without_a_stop_ends_by_itself():
    assert await Life().pause(0.001) is False


def test_a_stopping_process_is_not_ready():
    life = Life()
    life.stopping.set()

    assert life.problems() == {"process": "stopping"}


def test_a_part_that_is_not_served_any_more_is_forgotten():
    life = Life()
    life.report("tenant a", "away")
    life.forget("tenant a")

    assert life.problems() == {}


async def test_a_task_that_swallows_a_cancellation_is_cancelled_again():
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while swallowed < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
        await asyncio.Event().wait()

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await life.end(task)

    assert task.cancelled()
    assert swallowed == 2
