"""Clocks that step and disks that are slow: a shim in C, preloaded into what `up` starts.

    shim.c -> gcc -> shim.so          Shims.step("ingest", 3600)  Shims.slow("valkey", 200)
    slots: a file that all of them map, one slot a process

Without a compiler, or elsewhere than on Linux, there is none, and those faults are left out.
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
import sys
from pathlib import Path

SLOTS = ("postgres", "valkey", "ingest", "collector", "query", "keeper", "operator")
"""Whose clock can be stepped; their places in the file are those of shim.c."""

_SLOT = struct.Struct("=qq")
_SOURCE = Path(__file__).with_name("shim.c")


class Shims:
    """The slots of one `up`; a folder holds the library and the file."""

    def __init__(self, folder: Path) -> None:
        self.library = folder / "shim.so"
        self.slots = folder / "slots"
        command = ["gcc", "-O2", "-shared", "-fPIC", "-o", self.library, _SOURCE, "-ldl"]
        subprocess.run(command, check=True)
        self.slots.write_bytes(bytes(_SLOT.size * len(SLOTS)))
        for one in (self.library, self.slots):
            one.chmod(0o755)
        with self.slots.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def environment(self) -> dict[str, str]:
        """What the processes must be started with."""
        return {"LD_PRELOAD": str(self.library), "CHAOS_SHIM": str(self.slots)}

    def step(self, name: str, by_s: float) -> None:
        """Set how far a process's wall clock is ahead; 0 mends it."""
        _, fsync_ms = self._read(name)
        self._write(name, int(by_s * 1e9), fsync_ms)

    def slow(self, name: str, fsync_ms: int) -> None:
        """Set how much longer each fsync of a process takes."""
        self._write(name, self._read(name)[0], fsync_ms)

    def _read(self, name: str) -> tuple[int, int]:
        found: tuple[int, int] = _SLOT.unpack_from(self._map, SLOTS.index(name) * _SLOT.size)
        return found

    def _write(self, name: str, step_ns: int, fsync_ms: int) -> None:
        _SLOT.pack_into(self._map, SLOTS.index(name) * _SLOT.size, step_ns, fsync_ms)


def can_be_built() -> bool:
    return sys.platform == "linux" and shutil.which("gcc") is not None
