"""`logweir logs`: the last lines of processes' files, and those that follow."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from logweir.core import errors

POLL_S: Final = 0.2


def lines(logs: Path, name: str, last: int, *, follow: bool) -> Iterator[str]:
    """Yield lines of one process, or of all with their names in front.

    Raises:
        NotFoundError: there is no such process's log.
    """
    found = {path.stem: path for path in sorted(logs.glob("*.log"))}
    if name and name not in found:
        raise errors.NotFoundError(
            f"There is no log of {name!r} in {logs}.", hint=f"There are: {', '.join(found)}."
        )
    wanted = {name: found[name]} if name else found
    width = max(map(len, wanted), default=0)
    prefixes = {one: "" if name else f"{one:<{width}} | " for one in wanted}
    ends = {}
    for one, path in wanted.items():
        with path.open("rb") as file:
            for line in deque(file, maxlen=last):
                yield prefixes[one] + _text(line)
            ends[one] = (file.tell(), path.stat().st_ino)
    while follow:
        is_quiet = True
        for one, path in wanted.items():
            for line in _more(path, one, ends):
                is_quiet = False
                yield prefixes[one] + _text(line)
        if is_quiet:
            time.sleep(POLL_S)


def _more(path: Path, one: str, ends: dict[str, tuple[int, int]]) -> Iterator[bytes]:
    """Whole lines that were written since the last look; a rotated file begins anew."""
    end, inode = ends[one]
    try:
        file: BinaryIO = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        now = path.stat().st_ino
        file.seek(end if now == inode else 0)
        while (line := file.readline()).endswith(b"\n"):
            ends[one] = (file.tell(), now)
            yield line


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\n")
