"""The operator's queue: each key once, one worker a key, failures later and later."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logweir_operator import workqueue
from logweir_operator.workqueue import Again, FailedError, WorkQueue, retry_s

Work = Callable[[str], Awaitable[Again]]


@contextlib.asynccontextmanager
async def running(work: Work, workers: int = 2) -> AsyncIterator[WorkQueue[str]]:
    made: WorkQueue[str] = WorkQueue(work, workers)
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not check():
            await asyncio.sleep(0.001)


async def test_a_key_that_is_added_often_is_done_once():
    done: Counter[str] = Counter()

    async def work(key: str) -> Again:
        done[key] += 1
        return Again()

    made: WorkQueue[str] = WorkQueue(work, 2)
    for _ in range(100):
        made.add("a")
    assert len(made) == 1
    task = asyncio.create_task(made.run())
    await until(lambda: len(made) == 0 and done["a"] > 0)
    task.cancel()
    assert done == {"a": 1}


async def test_a_key_that_changes_while_in_work_is_done_once_more_and_never_by_two_at_once():
    begun, go_on = asyncio.Event(), asyncio.Event()
    at_once, most, runs = 0, 0, 0

    async def work(key: str) -> Again:
        nonlocal at_once, most, runs
        at_once += 1
        runs += 1
        most = max(most, at_once)
        begun.set()
        await go_on.wait()
        at_once -= 1
        return Again()

    async with running(work, workers=8) as made:
        made.add("a")
        await begun.wait()
        for _ in range(5):
            made.add("a")
        go_on.set()
        await until(lambda: len(made) == 0)
    assert (runs, most) == (2, 1)


async def test_no_more_keys_are_in_work_than_there_are_workers():
    at_once, most, done = 0, 0, 0

    async def work(key: str) -> Again:
        nonlocal at_once, most, done
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1
        done += 1
        return Again()

    async with running(work, workers=3) as made:
        for number in range(50):
            made.add(str(number))
        await until(lambda: done == 50)
    assert most == 3


async def test_a_key_that_never_rests_holds_up_no_other():
    order: list[str] = []

    async def work(key: str) -> Again:
        order.append(key)
        if key == "busy" and len(order) < 1000:
            made.add("busy")
        return Again()

    async with running(work, workers=1) as made:
        made.add("busy")
        for number in range(5):
            made.add(str(number))
        await until(lambda: set("01234") <= set(order))
    assert max(order.index(str(number)) for number in range(5)) < 12


async def test_a_key_that_fails_comes_again_later_and_one_that_cannot_succeed_does_not(
    monkeypatch: pytest.MonkeyPatch,
):
    waits: list[int] = []
    monkeypatch.setattr(workqueue, "retry_s", lambda failures, _: waits.append(failures) or 0.0)
    runs: Counter[str] = Counter()

    async def work(key: str) -> Again:
        runs[key] += 1
        if key == "final":
            raise FailedError("it is wrong", is_final=True)
        if runs[key] < 4:
            raise FailedError("not yet") if runs[key] % 2 else RuntimeError("a bug")
        return Again()

    async with running(work) as made:
        made.add("final")
        made.add("late")
        await until(lambda: runs["late"] == 4 and len(made) == 0)
        made.add("late")
        await until(lambda: runs["late"] == 5 and len(made) == 0)
    assert (waits, runs["final"]) == ([1, 2, 3], 1)


async def test_a_key_comes_again_when_its_worker_says_so():
    runs: Counter[str] = Counter()

    async def work(key: str) -> Again:
        runs[key] += 1
        return Again(0.0 if runs[key] < 3 else None)

    async with running(work) as made:
        made.add("a")
        await until(lambda: runs["a"] == 3 and len(made) == 0)
        made.add("b")
        await until(lambda: runs["b"] == 3)
    assert runs["a"] == 3


@given(failures=st.integers(1, 10_000), chance=st.floats(0, 1, exclude_max=True))
def test_retries_wait_longer_up_to_a_bound(failures: int, chance: float):
    wait_s = retry_s(failures, chance)
    assert 0.8 * workqueue.FIRST_RETRY_S <= wait_s <= 1.2 * workqueue.LAST_RETRY_S
    assert retry_s(failures + 1, chance) >= wait_s
