"""The promise under faults: what was acknowledged is stored, once, and the books balance."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator

import pytest
from chaos import figures, growth, rounds
from chaos.standing import Up, running

SIZE = rounds.Size(load_s=330.0, records_per_s=1800)
FAULTS, ACKED = 150, 300_000
"""Least of what a run must have had to count for anything."""


@pytest.fixture
def seed() -> int:
    """What `LOGWEIR_CHAOS_SEED` says, to run the same schedule again; else a new one."""
    return int(os.environ.get("LOGWEIR_CHAOS_SEED") or secrets.randbelow(10**9))


@pytest.fixture
def up(request: pytest.FixtureRequest) -> Iterator[Up]:
    """A running `logweir up`; its folder stays when the test fails."""
    with running() as found:
        yield found
    if request.node.stash.get(PASSED, False):
        found.remove()


PASSED = pytest.StashKey[bool]()


@pytest.mark.chaos
@pytest.mark.timeout(900)
async def test_what_is_acknowledged_is_stored_once_whatever_is_done_to_it(
    up: Up, seed: int, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    print(f"LOGWEIR_CHAOS_SEED={seed}, all of it in {up.folder}")
    await up.open("round-1")
    grows = growth.Growth(up)
    async with rounds.beside(grows.run()):
        report = await rounds.Round(up, seed, SIZE).play(asyncio.Event())
    grown = growth.grown(grows.samples)
    text = "\n".join(["", report.text(), *growth.table(grows.samples)])
    with capsys.disabled():
        print(text)

    assert report.problems() == [], text
    assert grown == [], text
    assert len(report.done) >= FAULTS
    assert report.acked >= ACKED
    figures.write(report, grows.samples)
    request.node.stash[PASSED] = True
