"""One round: a tenant, load, faults, drain, a calm stretch, the verdict.

    producers --------------------------> stop, drain -> calm accounts -> truth -> judge -> Report
    faults, each followed by probers ---^

A seed gives the requests and the schedule of the faults; the same seed replays both.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import subprocess
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import msgspec
from chaos import accounting, checker, history, moves, recovery, truth
from chaos.checker import Verdict
from chaos.faults import Done, Faults
from chaos.numbered import Maker
from chaos.producer import Door, Producer, run_all
from chaos.standing import Up

STYLES = ("numbered", "free", "numbered", "free", "none")
"""Of the producers' keys, in turn."""

PRODUCERS, PROBERS = 16, 3
RECORDS_PER_REQUEST = 40
DRAIN_S = 120.0
RECEIPTS = 150
RECOVERED_S = 106.0
"""By then all must be well again after a fault, and twice the longest one more, as they overlap."""

CALM_REQUESTS = 60
LATE_S = 10.0
"""How long metrics may need to show what was just committed."""


class Size(msgspec.Struct, frozen=True):
    """How much of everything a round has."""

    load_s: float
    records_per_s: int
    long_s: tuple[float, float] = (4.0, 7.0)


class Report(msgspec.Struct):
    """What came of a round. `history` is the file of all that was sent, answered and done."""

    seed: int
    history: Path
    load_s: float
    drain_s: float
    verdict: Verdict
    done: list[Done]
    not_done: list[str]
    left_out: list[str]
    wrongs: list[str]
    never: list[str]

    @property
    def acked(self) -> int:
        return self.verdict.numbers["records acked"]

    def problems(self) -> list[str]:
        """All that is not as promised, in a line each."""
        kinds = [f"{count} {kind}" for kind, count in self.verdict.kinds.items()]
        lost = [f"not recovered from: {one}" for one in recovery.lost(self.done)]
        never = [f"never done: {one}" for one in self.never]
        return [*kinds, *self.wrongs, *lost, *never]

    def text(self) -> str:
        """All of it, for a person."""
        return "\n".join(
            [
                checker.report(self.verdict, self.seed),
                f"  faults {len(self.done)}, load {self.load_s:.0f} s, drain {self.drain_s:.1f} s",
                *recovery.table(self.done),
                *(f"  not done: {one}" for one in self.not_done),
                *(f"  left out: {one}" for one in self.left_out),
                *(f"  WRONG: {one}" for one in self.problems()),
            ]
        )


class Round:
    """Plays one round on a running `up`; `acked` and `done` tell how far it is."""

    def __init__(self, up: Up, seed: int, size: Size) -> None:
        self._up, self._seed, self._size = up, seed, size
        self._log = history.Log(up.folder / f"history-{seed}.ndjson")
        self._door = Door(up.place.ingest_url, up.place.ingest_key)
        self._metrics = accounting.Metrics(up)
        self._recovery = recovery.Recovery(
            up,
            [self._producer(PRODUCERS + n, "numbered", patience_s=(2.0,)) for n in range(PROBERS)],
            give_up_s=RECOVERED_S + 2 * size.long_s[1],
        )
        found, self._left_out = moves.possible(up)
        self.faults = Faults(up, self._log, seed, found, self._recovery.follow, long_s=size.long_s)

    @property
    def acked(self) -> int:
        """Records that were acknowledged so far."""
        return self._log.acked

    async def play(self, stop: asyncio.Event) -> Report:
        """Do all of it; `stop` ends the load before its time, and what was begun is judged."""
        begin_s = time.monotonic()
        await self._load(stop)
        load_s = time.monotonic() - begin_s
        await truth.drained(self._up, DRAIN_S)
        drain_s = time.monotonic() - begin_s - load_s
        wrongs = [*self.faults.wrongs, *await self._accounts()]
        self._log.close()
        found = history.fold(history.read(self._log.path))
        there = await truth.read(self._up, truth.sample(found, self._seed, RECEIPTS))
        return Report(
            seed=self._seed,
            history=self._log.path,
            load_s=load_s,
            drain_s=drain_s,
            verdict=checker.judge(found, there),
            done=self.faults.done,
            not_done=self.faults.not_done,
            left_out=self._left_out,
            wrongs=wrongs,
            never=self.faults.never,
        )

    def _producer(self, number: int, style: str, **more: Any) -> Producer:
        return Producer(Maker(number, self._seed, style, time.time), self._door, self._log, **more)

    async def _load(self, stop: asyncio.Event) -> None:
        pause_s = PRODUCERS * RECORDS_PER_REQUEST / self._size.records_per_s
        producers = [
            self._producer(number, STYLES[number % len(STYLES)], pause_s=pause_s)
            for number in range(PRODUCERS)
        ]
        enough = asyncio.Event()
        async with beside(self._metrics.run()), asyncio.TaskGroup() as tasks:
            tasks.create_task(self._recovery.run())
            load = tasks.create_task(run_all(producers, enough))
            await self.faults.run(self._size.load_s, stop)
            # What a collector held is left to its successor, with no other fault to make it look.
            await self.faults.kill("collector")
            enough.set()
            await load
            self._recovery.stop()

    async def _accounts(self) -> list[str]:
        """Compare metrics with the books: over the faults, then over a calm stretch."""
        await self._up.all_ready()
        before = accounting.by_metrics(await self._metrics.scrape())
        books = await accounting.by_books(self._up)
        found = accounting.over(before, books)
        calm = self._producer(PRODUCERS + PROBERS, "numbered", patience_s=(30.0,))
        await calm.send_many(CALM_REQUESTS)
        await truth.drained(self._up, DRAIN_S)
        deadline_s = time.monotonic() + LATE_S
        while True:
            metrics = accounting.by_metrics(await self._metrics.scrape())
            added = accounting.differences(before, metrics)
            stands = accounting.differences(books, await accounting.by_books(self._up))
            wrong = accounting.unequal(added, stands)
            if not wrong or time.monotonic() > deadline_s:
                return [*found, *wrong]
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Have something run as long as the block does; its error is the block's."""
    task = asyncio.create_task(work)
    try:
        yield
        if task.done():
            task.result()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        found = ""
    return found.strip() or "unknown"


COMMIT = _commit()
"""As it was when this began."""


def machine() -> str:
    """Say where this runs, and what."""
    return f"commit {COMMIT}, {os.cpu_count()} cores, Python {platform.python_version()}"
