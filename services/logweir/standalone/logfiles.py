"""Output of processes: a pipe each, drained by the supervisor into files that are rotated.

What does not fit on a full disk is left out: a process never waits for its log, and the supervisor
goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 8 << 20
"""A file of this size becomes NAME.log.1, and the older ones move on."""

KEEP: Final = 3
PIPE_BYTES: Final = 1 << 20
"""What a process may write while the supervisor is busy with another one, for seconds."""

LAST_WORDS_BYTES: Final = 1000
LAST_WORDS_LINES: Final = 3
_READ_BYTES: Final = 1 << 16
_READS_AT_ONCE: Final = 64


class LogFile:
    """One process's output. `writer` is the end of the pipe that the process gets."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._lost_bytes = 0
        self._recent = b""
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    @property
    def path(self) -> Path:
        """Where the newest output is."""
        return self._path

    def drain(self) -> None:
        """Move what was written into the file; of a process that writes without end, some."""
        for _ in range(_READS_AT_ONCE):
            try:
                data = os.read(self.reader, _READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                return
            self._recent = (self._recent + data)[-LAST_WORDS_BYTES:]
            self._write(data)

    def begin(self) -> None:
        """A process begins: what comes from now on are its words."""
        self.drain()
        self._recent = b""

    def last_words(self) -> str:
        """Return the last lines since `begin`, for a person."""
        self.drain()
        lines = self._recent.decode("utf-8", "replace").strip().splitlines()
        return " / ".join(lines[-LAST_WORDS_LINES:])

    def note(self, text: str) -> None:
        """Write a line of the supervisor's own."""
        self.drain()
        self._write(f"--- {text}\n".encode())

    def _write(self, data: bytes) -> None:
        note = b""
        if self._lost_bytes:
            note = b"--- %d bytes are missing here: the disk was full\n" % self._lost_bytes
        try:
            written = self._file.write(note + data)
        except OSError:
            written = 0
        missing = len(note) + len(data) - written
        if missing:
            self._lost_bytes += min(missing, len(data))
            return
        self._lost_bytes = 0
        if self._file.tell() >= MAX_BYTES:
            self._rotate()

    def _rotate(self) -> None:
        try:
            for number in range(KEEP, 0, -1):
                newer = self._numbered(number - 1) if number > 1 else self._path
                if newer.exists():
                    newer.replace(self._numbered(number))
            fresh = self._path.open("ab", buffering=0)
        except OSError:
            return  # the old one goes on; the next write tries again
        self._file.close()
        self._file = fresh

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def close(self) -> None:
        """Drain and close."""
        self.drain()
        os.close(self.reader)
        os.close(self.writer)
        self._file.close()
