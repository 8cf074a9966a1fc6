"""What the machine and its processes used: CPU seconds, memory, and whether it was quiet."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

TICKS = os.sysconf("SC_CLK_TCK")


class Cpu(NamedTuple):
    """CPU seconds by process name."""

    by_name: dict[str, float]

    @property
    def total_s(self) -> float:
        return sum(self.by_name.values())

    def since(self, before: Cpu) -> Cpu:
        return Cpu({name: s - before.by_name.get(name, 0) for name, s in self.by_name.items()})


def _stat(pid: int) -> tuple[int, float] | None:
    """The parent, and CPU seconds of a process with those of children that it has reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), sum(map(int, fields[11:15])) / TICKS


def cpu(pids: dict[str, int]) -> Cpu:
    """CPU seconds of processes and all their descendants, by name."""
    stats = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (found := _stat(int(entry.name))) is not None:
            stats[int(entry.name)] = found
    roots = {pid: name for name, pid in pids.items()}

    def root_of(pid: int) -> str | None:
        while pid in stats:
            if pid in roots:
                return roots[pid]
            pid = stats[pid][0]
        return None

    totals = dict.fromkeys(pids, 0.0)
    for pid, (_, seconds) in stats.items():
        name = root_of(pid)
        if name is not None:
            totals[name] += seconds
    return Cpu(totals)


def peak_bytes(pid: int) -> int:
    """The largest resident memory that a process ever had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def idle_share(seconds: float = 1.0) -> float:
    """Which share of the processors is idle; near 1 before a run on a quiet machine."""

    def ticks() -> tuple[int, int]:
        fields = list(map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9]))
        return fields[3] + fields[4], sum(fields)

    idle, whole = ticks()
    time.sleep(seconds)
    idle_after, whole_after = ticks()
    return (idle_after - idle) / max(1, whole_after - whole)


def describe() -> str:
    """The machine in a line."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return (
        f"{os.cpu_count()} x {model}, {memory_gib:.0f} GiB, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}"
    )


def commit(root: Path) -> str:
    """The commit of the working tree, with a + when it was changed."""
    text = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=root, capture_output=True, text=True
    ).stdout
    return text.strip() or "unknown"
