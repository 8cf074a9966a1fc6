"""Whether a process grows without bound: its memory and its open files, through the whole run.

    /proc every few seconds -> samples by process of `up`, over all its lives -> grown()

Memory is PSS, summed over a process and what it has started, so that pages that forked roles
share count once. A killed process begins anew; that its successors are larger is growth too.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import psutil
from chaos.standing import Up

EVERY_S = 3.0
WARM_UP = 0.2
"""The part of the run that is not looked at: caches and pools fill."""

FACTOR, PLUS_BYTES, PLUS_FILES = 1.25, 64 << 20, 24
"""The last third of what is looked at may be larger than the first by so much; more is growth.

A keeper that was killed is small until its first merge, which takes some 60 MiB for good."""


class Sample(msgspec.Struct, frozen=True):
    pss_bytes: int
    files: int


class Growth:
    """Samples of each process of an `up`."""

    def __init__(self, up: Up) -> None:
        self._up = up
        self.samples: dict[str, list[Sample]] = defaultdict(list)

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await asyncio.to_thread(self._sample)
            await asyncio.sleep(EVERY_S)

    def _sample(self) -> None:
        shown = self._up.shown()
        families = {one.name: self._up.family(one.name) for one in shown.processes}
        with contextlib.suppress(psutil.Error):
            families["supervisor"] = [psutil.Process(shown.pid)] if shown.pid else []
        for name, family in families.items():
            found = [one for process in family if (one := _look(process)) is not None]
            if found:
                whole = Sample(sum(f.pss_bytes for f in found), sum(f.files for f in found))
                self.samples[name].append(whole)


def _look(process: psutil.Process) -> Sample | None:
    try:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        pss_kib = next(int(line.split()[1]) for line in rollup.splitlines() if "Pss:" in line)
        return Sample(pss_kib << 10, process.num_fds())
    except (OSError, psutil.Error, StopIteration, AttributeError):
        return None


def thirds(samples: Sequence[Sample]) -> tuple[Sample, Sample] | None:
    """Return the medians of the first and the last third after the warm-up; None with too few."""
    seen = samples[int(len(samples) * WARM_UP) :]
    size = len(seen) // 3
    if size < 3:
        return None
    first, last = (
        Sample(
            int(statistics.median(one.pss_bytes for one in some)),
            int(statistics.median(one.files for one in some)),
        )
        for some in (seen[:size], seen[-size:])
    )
    return first, last


def grown(samples: Mapping[str, Sequence[Sample]]) -> list[str]:
    """Name the processes whose memory or files have grown."""
    found = []
    for name, some in samples.items():
        if (pair := thirds(some)) is None:
            continue
        first, last = pair
        if last.pss_bytes > first.pss_bytes * FACTOR + PLUS_BYTES:
            found.append(f"{name}: from {first.pss_bytes >> 20} to {last.pss_bytes >> 20} MiB")
        if last.files > first.files * FACTOR + PLUS_FILES:
            found.append(f"{name}: from {first.files} to {last.files} open files")
    return found


def table(samples: Mapping[str, Sequence[Sample]]) -> list[str]:
    lines = [
        "| process | memory, first third, MiB | last third | largest | files, first | last |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, some in sorted(samples.items()):
        if (pair := thirds(some)) is not None:
            first, last = pair
            largest = max(one.pss_bytes for one in some)
            lines.append(
                f"| {name} | {first.pss_bytes >> 20} | {last.pss_bytes >> 20} | {largest >> 20} |"
                f" {first.files} | {last.files} |"
            )
    return lines
