"""Output of processes: a pipe each, drained by the supervisor into files that are rotated."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 8 << 20
"""A file of this size becomes NAME.log.1, and the older ones move on."""

KEEP: Final = 3
_READ_BYTES: Final = 1 << 16


class LogFile:
    """One process's output. `writer` is the end of the pipe that the process gets."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab")
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    @property
    def path(self) -> Path:
        """Where the newest output is."""
        return self._path

    def drain(self) -> None:
        """Move what was written into the file."""
        while True:
            try:
                data = os.read(self.reader, _READ_BYTES)
            except BlockingIOError:
                break
            if not data:
                break
            self._file.write(data)
            if self._file.tell() >= MAX_BYTES:
                self._rotate()
        self._file.flush()

    def note(self, text: str) -> None:
        """Write a line of the supervisor's own."""
        self.drain()
        self._file.write(f"--- {text}\n".encode())
        self._file.flush()

    def _rotate(self) -> None:
        self._file.close()
        for number in range(KEEP, 0, -1):
            newer = self._numbered(number - 1) if number > 1 else self._path
            if newer.exists():
                newer.replace(self._numbered(number))
        self._file = self._path.open("ab")

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def close(self) -> None:
        """Drain and close."""
        self.drain()
        os.close(self.reader)
        os.close(self.writer)
        self._file.close()
