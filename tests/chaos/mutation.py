"""Runs mutants under load and faults: the harness must call each of them wrong, and say how.

    make mutants [ONLY="keyless, no reclaim" | ONLY=3]        3: so many by chance, by the seed

A mutant that is not caught, or for another reason than expected, fails; so does the product as it
is when anything is found wrong with it. The folder of a run that failed stays.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import msgspec
from chaos import checker, failpoint_moves, history, kills, mutants, shims, truth
from chaos.faults import Faults, Move, NotDoneError
from chaos.mutants import CLEAN, MUTANTS, Mutant
from chaos.numbered import Maker
from chaos.producer import Door, Producer, run_all
from chaos.standing import Up

LEAD_S = 3.0
"""Load before the first fault, so that there is something to lose."""

STEP_S = 2.0
"""Load between two faults."""

DRAIN_S, SOUND_DRAIN_S = 12.0, 90.0
"""Longer than a sound collector needs, of which the second is patient on a busy machine; what a
mutant leaves is stuck."""

PRODUCERS = 12
RECORDS_PER_S = 2000
RECORDS_PER_REQUEST = 40
STYLES = ("numbered", "free", "none")
FSYNC_MS = 1500
SLOW_S = 2.5


async def _kill_in_a_slow_fsync(faults: Faults, dice: random.Random) -> None:
    if faults.up.shims is None:
        raise NotDoneError("slow fsync needs gcc, on Linux")
    async with faults.stopped("collector"):
        faults.up.shims.slow("valkey", FSYNC_MS)
        try:
            await asyncio.sleep(SLOW_S)
            await faults.kill("valkey", backlog=await faults.entries())
        finally:
            faults.up.shims.slow("valkey", 0)


MOVES = {
    **kills.MOVES,
    **failpoint_moves.MOVES,
    mutants.SLOW_FSYNC: Move(1, _kill_in_a_slow_fsync),
}
SHOWN = {mutants.FORGOTTEN: f"{mutants.UNANSWERED}, and its markers"}
"""Names of moves that say nothing by themselves."""


class Run(msgspec.Struct, frozen=True):
    """What came of one mutant."""

    mutant: Mutant
    verdict: checker.Verdict
    faults: int
    never: tuple[str, ...]
    load_s: float
    folder: Path

    @property
    def is_as_expected(self) -> bool:
        kinds = self.verdict.kinds
        if self.mutant.caught_as:
            return self.mutant.caught_as in kinds
        return not kinds and not self.never


def move(fault: str) -> Move:
    """Return the move that a mutant names."""
    return MOVES[fault] if fault in MOVES else Move(1, failpoint_moves.at(fault))


async def run(mutant: Mutant, seed: int) -> Run:
    """Start the mutant, load it, do its faults, and judge."""
    code = Path(tempfile.mkdtemp(prefix="logweir-mutant-"))
    up = Up(mutants.copy(mutant, code / "code"))
    try:
        up.start()
        await up.open("mutant")
        log = history.Log(up.folder / "history.ndjson")
        harm, load_s = await _load(up, log, mutant, seed)
        await truth.drained(up, DRAIN_S if mutant.edits else SOUND_DRAIN_S)
        found = history.fold(history.read(log.path))
        there = await truth.read(up, truth.sample(found, seed, 50))
        log.close()
    finally:
        up.stop()
        shutil.rmtree(code)
    verdict = checker.judge(found, there)
    return Run(mutant, verdict, len(harm.done), tuple(harm.never), load_s, up.folder)


async def _load(up: Up, log: history.Log, mutant: Mutant, seed: int) -> tuple[Faults, float]:
    moves = {fault: move(fault) for fault in mutant.faults}
    harm = Faults(up, log, seed, moves, follow=lambda _: None)
    stop, begin_s = asyncio.Event(), time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run_all(_producers(up, log, seed), stop))
        await asyncio.sleep(LEAD_S)
        await harm.one_by_one(mutant.faults, STEP_S)
        stop.set()
    return harm, time.monotonic() - begin_s


def _producers(up: Up, log: history.Log, seed: int) -> list[Producer]:
    door = Door(up.place.ingest_url, up.place.ingest_key)
    pause_s = PRODUCERS * RECORDS_PER_REQUEST / RECORDS_PER_S
    styles = [STYLES[number % len(STYLES)] for number in range(PRODUCERS)]
    makers = [Maker(number, seed, style, time.time) for number, style in enumerate(styles)]
    return [Producer(maker, door, log, pause_s) for maker in makers]


def chosen(only: str, seed: int) -> list[Mutant]:
    """Return the mutants that a text names: all, some by their names, or so many by chance."""
    if not only:
        return [CLEAN, *MUTANTS]
    if only.isdigit():
        return random.Random(f"{seed}/mutants").sample(MUTANTS, int(only))
    known = {one.name: one for one in (CLEAN, *MUTANTS)}
    names = [name.strip() for name in only.split(",")]
    if missing := [name for name in names if name not in known]:
        raise SystemExit(f"no such mutant: {', '.join(missing)}; there are {', '.join(known)}")
    return [known[name] for name in names]


HEAD = (
    "| mutant | faults | done | s | records acked | lost | doubled | stuck | accounting |"
    " others | verdict |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def row(one: Run) -> str:
    """Return the run's line of the table."""
    kinds = one.verdict.kinds
    counted = ("lost", "doubled", "stuck", "accounting")
    others = ", ".join(f"{n} {kind}" for kind, n in kinds.items() if kind not in counted)
    verdict = one.mutant.caught_as or "clean"
    faults = [SHOWN.get(fault, fault) for fault in dict.fromkeys(one.mutant.faults)]
    what = ", ".join(faults) if one.mutant.caught_as else "all of these, and more at failpoints"
    return (
        f"| {one.mutant.name} | {what} | {one.faults} | {one.load_s:.0f}"
        f" | {one.verdict.numbers['records acked']:,}"
        f" | {' | '.join(f'{kinds[kind]:,}' for kind in counted)} | {others}"
        f" | {verdict if one.is_as_expected else 'NOT ' + verdict} |"
    )


def main() -> None:
    """Run the chosen mutants and print the table; exit code 1 when one is not as expected."""
    seed = int(os.environ.get("LOGWEIR_CHAOS_SEED") or secrets.randbelow(10**9))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(f"LOGWEIR_CHAOS_SEED={seed} at {commit or 'no commit'}\n\n{HEAD}", flush=True)
    failed = []
    for mutant in chosen(" ".join(sys.argv[1:]), seed):
        if mutants.SLOW_FSYNC in mutant.faults and not shims.can_be_built():
            print(f"left out: {mutant.name} needs gcc, on Linux", flush=True)
            continue
        try:
            one = asyncio.run(run(mutant, seed))
        except Exception:
            failed.append(f"{mutant.name}: {traceback.format_exc()}")
            print(f"{mutant.name} could not be judged", flush=True)
            continue
        print(row(one), flush=True)
        if one.is_as_expected:
            shutil.rmtree(one.folder, ignore_errors=True)
        else:
            failed.append(f"{mutant.name}, in {one.folder}: {checker.report(one.verdict, seed)}")
        for fault in one.never:
            print(f"never done: {fault}", flush=True)
    if failed:
        raise SystemExit("\n\n".join(["", *failed]))


if __name__ == "__main__":
    main()
