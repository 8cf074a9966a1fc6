"""The promise under faults: what was acknowledged is stored, once, and the books balance."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Iterator

import pytest
from chaos import checker, faults, history, truth
from chaos.numbered import Maker
from chaos.producer import Door, Producer, run_all
from chaos.standing import Up

LOAD_S = 85.0
PRODUCERS = 16
RECORDS_PER_S = 3000
RECORDS_PER_REQUEST = 40
DRAIN_S = 90.0
RECEIPTS = 150

STYLES = ("numbered", "free", "numbered", "free", "none")
"""Of the producers' keys, in turn."""


@pytest.fixture
def seed() -> int:
    """What `LOGWEIR_CHAOS_SEED` says, to run the same schedule again; else a new one."""
    return int(os.environ.get("LOGWEIR_CHAOS_SEED") or secrets.randbelow(10**9))


@pytest.fixture
def up(request: pytest.FixtureRequest) -> Iterator[Up]:
    """A running `logweir up`; its folder stays when the test fails."""
    found = Up()
    try:
        found.start()
        yield found
    finally:
        left = found.stop()
    assert not left, f"still running after `logweir down`: {left}"
    if request.node.stash.get(PASSED, False):
        found.remove()


PASSED = pytest.StashKey[bool]()


def producers(up: Up, log: history.Log, seed: int) -> list[Producer]:
    shown = up.shown()
    door = Door(shown.ingest_url, shown.ingest_key)
    pause_s = PRODUCERS * RECORDS_PER_REQUEST / RECORDS_PER_S
    styles = [STYLES[number % len(STYLES)] for number in range(PRODUCERS)]
    makers = [Maker(number, seed, style, time.time) for number, style in enumerate(styles)]
    return [Producer(maker, door, log, pause_s) for maker in makers]


@pytest.mark.chaos
@pytest.mark.timeout(420)
async def test_what_is_acknowledged_is_stored_once_whatever_is_killed(
    up: Up, seed: int, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    print(f"LOGWEIR_CHAOS_SEED={seed}, all of it in {up.folder}")
    log = history.Log(up.folder / "history.ndjson")
    harm, stop = faults.Faults(up, log, seed), asyncio.Event()
    begin_s = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run_all(producers(up, log, seed), stop))
        await harm.run(LOAD_S)
        stop.set()
    load_s = time.monotonic() - begin_s
    await truth.drained(up, DRAIN_S)
    drain_s = time.monotonic() - begin_s - load_s
    log.close()
    found = history.fold(history.read(log.path))
    there = await truth.read(up, truth.sample(found, seed, RECEIPTS))
    verdict = checker.judge(found, there)
    text = "\n".join(
        [
            f"\nload {load_s:.0f} s, drain {drain_s:.1f} s, {checker.report(verdict, seed)}",
            *faults.table(harm.kills),
        ]
    )
    with capsys.disabled():
        print(text)

    assert verdict.kinds == {}, text
    assert len(harm.kills) >= 20
    assert verdict.numbers["records acked"] > 10_000
    request.node.stash[PASSED] = True
