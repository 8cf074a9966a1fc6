"""What the machine and its processes used: CPU seconds, memory, and whether it was quiet."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import resource
import subprocess
import threading
import time
import zlib
from pathlib import Path
from typing import NamedTuple

from figures import Cost

from logweir.standalone import binaries

TICKS = os.sysconf("SC_CLK_TCK")
QUIET_IDLE = 0.85
QUIET_SPREAD = 0.15
"""Where less is idle before a run, or a fixed loop varies more within it, figures are not quoted."""


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


def family(pids: dict[str, int]) -> dict[int, str]:
    """Processes and all their descendants, each with the name of its root."""
    parents = {
        int(entry.name): found[0]
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal() and (found := _stat(int(entry.name))) is not None
    }
    roots = {pid: name for name, pid in pids.items()}

    def root_of(pid: int) -> str | None:
        while pid in parents:
            if pid in roots:
                return roots[pid]
            pid = parents[pid]
        return None

    return {pid: name for pid in parents if (name := root_of(pid)) is not None}


def cpu(pids: dict[str, int]) -> Cpu:
    """CPU seconds of processes and all their descendants, by name; to some 10 ms each."""
    totals = dict.fromkeys(pids, 0.0)
    for pid, name in family(pids).items():
        if (found := _stat(pid)) is not None:
            totals[name] += found[1]
    return Cpu(totals)


def children_cpu_s() -> float:
    """CPU seconds of this program's own children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def peak_bytes(pid: int) -> int:
    """The largest resident memory that a process ever had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


class MemoryWatch:
    """Samples memory once a second: the largest sum of PSS over a process and its descendants.

    PSS counts a shared page by its share, so the sum over PostgreSQL's processes counts
    shared_buffers once. A peak between two samples is missed; `peak_bytes` misses none, but counts
    what roles share with the supervisor in each of them.
    """

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.peaks: dict[str, int] = dict.fromkeys(pids, 0)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            for name, found in pss_bytes(self._pids).items():
                self.peaks[name] = max(self.peaks[name], found)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def pss_bytes(pids: dict[str, int]) -> dict[str, int]:
    """Proportional memory of processes with all their descendants, by name; 0 where unreadable."""
    totals = dict.fromkeys(pids, 0)
    for pid, name in family(pids).items():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    totals[name] += int(line.split()[1]) * 1024
    return totals


def open_files(pids: dict[str, int]) -> dict[str, int]:
    """Open descriptors of processes with all their descendants, by name."""
    totals = dict.fromkeys(pids, 0)
    for pid, name in family(pids).items():
        with contextlib.suppress(OSError):
            totals[name] += len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return totals


def connections(port: int) -> int:
    """Connections that a server on this port of the loopback address has."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    found = (line.split() for line in lines)
    return sum(one[1].endswith(f":{port:04X}") and one[3] == "01" for one in found)


def idle_share(seconds: float = 1.0) -> float:
    """Which share of the processors is idle; near 1 before a run on a quiet machine."""

    def ticks() -> tuple[int, int]:
        fields = list(map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9]))
        return fields[3] + fields[4], sum(fields)

    idle, whole = ticks()
    time.sleep(seconds)
    idle_after, whole_after = ticks()
    return (idle_after - idle) / max(1, whole_after - whole)


def calibrate() -> Cost:
    """Run a fixed piece of work, some 0.2 s: by how much it differs within a run is noise."""
    block = bytes(range(256)) * 4096
    wall_s, cpu_s = time.monotonic(), time.process_time()
    total = 0
    for _ in range(40):
        total += zlib.crc32(block) + len(hashlib.sha256(block).digest())
        total += sum(range(60_000))
    return Cost(time.monotonic() - wall_s, time.process_time() - cpu_s)


class Noise:
    """Judges whether a machine was quiet: idle before the run, and equally fast all along."""

    def __init__(self) -> None:
        self.idle = idle_share()
        calibrate()
        self.loops: list[Cost] = []
        self.look()

    def look(self) -> None:
        """Run the fixed piece of work once more."""
        self.loops.append(min((calibrate() for _ in range(2)), key=lambda one: one.wall_s))

    def verdict(self) -> str:
        """Return "" for a quiet machine, else what was not quiet."""
        walls = [one.wall_s for one in self.loops]
        spread = max(walls) / min(walls) - 1
        problems = []
        if self.idle < QUIET_IDLE:
            problems.append(f"only {self.idle:.0%} of it was idle before the run")
        if spread > QUIET_SPREAD:
            problems.append(f"a fixed loop took up to {spread:.0%} longer than at its best")
        return "TOO NOISY: " + ", and ".join(problems) if problems else ""

    def describe(self) -> str:
        walls = [one.wall_s * 1000 for one in self.loops]
        return (
            f"{self.idle:.0%} idle before the run; a fixed loop took {min(walls):.0f} to"
            f" {max(walls):.0f} ms in {len(walls)} looks"
        )


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


def servers() -> str:
    """The servers that `up` runs, with their versions."""
    found = (binaries.postgres(), binaries.valkey(), binaries.nginx())
    return ", ".join(
        f"{one.kind} {'.'.join(map(str, one.version))}" for one in found if one is not None
    )


def commit(root: Path) -> str:
    """The commit of the working tree, with a + when it was changed."""
    text = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=root, capture_output=True, text=True
    ).stdout
    return text.strip() or "unknown"
