"""Faults for hours: `make chaos SIZE=soak` (HOURS=4). Ctrl-C ends the load, judges and reports.

    one `up`: round 1 (tenant, load, faults, drain, verdict), round 2 ... each with its own seed

A round's tenant is deleted after its verdict, so disks and the checker's memory stay bounded; the
processes of the `up` go on, and how they grow is judged over all rounds. A round in which
something is wrong says so at once, and the rounds go on; the folder stays.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import sys
import time

import msgspec
from chaos import growth, recovery, rounds
from chaos.faults import Done
from chaos.rounds import Round
from chaos.standing import Up

SIZE = rounds.Size(load_s=600.0, records_per_s=1500, long_s=(4.0, 70.0))
PROGRESS_S = 30.0


class Told(msgspec.Struct, frozen=True):
    """What is kept of a round that was judged."""

    acked: int
    done: list[Done]
    problems: list[str]


class Soak:
    """Plays rounds until the time is over or somebody has had enough."""

    def __init__(self, up: Up, seed: int, size: rounds.Size, hours: float) -> None:
        self._up, self._seed, self._size = up, seed, size
        self._begin_s = time.monotonic()
        self._end_s = self._begin_s + 3600 * hours
        self._growth = growth.Growth(up)
        self._told: list[Told] = []
        self._round: Round | None = None
        self.stop = asyncio.Event()

    async def run(self) -> bool:
        """Play; return whether all is as promised."""
        asyncio.get_running_loop().call_later(self._end_s - time.monotonic(), self.stop.set)
        async with rounds.beside(self._growth.run()), rounds.beside(self._progress()):
            while not self.stop.is_set():
                await self._play(len(self._told))
        print(self.text(), flush=True)
        return not self.problems()

    async def _play(self, number: int) -> None:
        name = f"round-{number + 1}"
        await self._up.open(name)
        self._round = Round(self._up, self._seed + number, self._size)
        report = await self._round.play(self.stop)
        self._round = None
        print(report.text(), flush=True)
        problems = [f"seed {report.seed}: {one}" for one in report.problems()]
        self._told.append(Told(report.acked, report.done, problems))
        if not problems:
            report.history.unlink()
        await self._up.close(name)

    async def _progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            print(self.line(), flush=True)

    def line(self) -> str:
        """How far it is."""
        acked = sum(one.acked for one in self._told)
        faults = sum(len(one.done) for one in self._told)
        if self._round is not None:
            acked, faults = acked + self._round.acked, faults + len(self._round.faults.done)
        memory = {name: some[-1].pss_bytes >> 20 for name, some in self._growth.samples.items()}
        return (
            f"{(time.monotonic() - self._begin_s) / 60:.1f} min, {acked:,} records acked,"
            f" {faults} faults, {len(self._wrong())} wrong, {sum(memory.values())} MiB:"
            f" {', '.join(f'{name} {mib}' for name, mib in memory.items())}"
        )

    def problems(self) -> list[str]:
        """All that is not as promised, so far."""
        return [*self._wrong(), *growth.grown(self._growth.samples)]

    def _wrong(self) -> list[str]:
        return [problem for one in self._told for problem in one.problems]

    def text(self) -> str:
        """All rounds together."""
        done = [one for told in self._told for one in told.done]
        problems = self.problems()
        return "\n".join(
            [
                f"\n{len(self._told)} rounds from seed {self._seed} on, {rounds.machine()}",
                self.line(),
                *recovery.table(done),
                *growth.table(self._growth.samples),
                *(f"WRONG: {one}" for one in problems),
                f"{len(problems)} wrong" if problems else "nothing lost, nothing doubled",
            ]
        )


async def _main(hours: float, load_s: float) -> bool:
    seed = int(os.environ.get("LOGWEIR_CHAOS_SEED") or secrets.randbelow(10**9))
    up = Up()
    is_good = False
    try:
        print(f"LOGWEIR_CHAOS_SEED={seed}, all of it in {up.folder}; Ctrl-C ends it", flush=True)
        up.start()
        soak = Soak(up, seed, msgspec.structs.replace(SIZE, load_s=load_s), hours)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, soak.stop.set)
        is_good = await soak.run()
    finally:
        left = up.stop()
        if is_good and not left:
            up.remove()
    if left:
        print(f"still running after `logweir down`: {left}")
    return is_good and not left


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=4.0)
    parser.add_argument("--round-s", type=float, default=SIZE.load_s, help="load of a round")
    given = parser.parse_args()
    sys.exit(not asyncio.run(_main(given.hours, given.round_s)))
