"""Lines of a file or a pipe, with a sign when no more of them come for a moment.

A batch need not wait for its last record when the one who writes has paused: `tail -f | send`.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from typing import BinaryIO, Final

from logweir.core import bounds

PAUSE_S: Final = 0.5
READ_BYTES: Final = 1 << 18
MAX_LINE_BYTES: Final = 2 * bounds.MAX_RECORD_BYTES
"""What is longer is cut while it is read; as a record it is refused."""


def read(file: BinaryIO, pause_s: float = PAUSE_S) -> Iterator[bytes | None]:
    """Yield lines without their ends; None when nothing has come for `pause_s`."""
    handle = file.fileno()
    left = b""
    is_quiet = True
    while True:
        if not _is_readable(handle, None if is_quiet else pause_s):
            is_quiet = True
            yield None
            continue
        data = os.read(handle, READ_BYTES)
        if not data:
            if left:
                yield left
            return
        is_quiet = False
        *lines, left = (left + data).split(b"\n")
        left = left[:MAX_LINE_BYTES]
        for line in lines:
            yield line.removesuffix(b"\r")


def _is_readable(handle: int, wait_s: float | None) -> bool:
    found, _, _ = select.select([handle], [], [], wait_s)
    return bool(found)
