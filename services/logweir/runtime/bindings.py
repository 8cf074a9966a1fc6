"""Reads a role's binding file and reads it again when it changes."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from logweir.core import errors
from logweir.runtime.life import Life

logger = logging.getLogger(__name__)

POLL_S = 0.5
"""How often the file is looked at; a mounted Secret takes far longer to arrive."""

Binding = TypeVar("Binding", bound=msgspec.Struct)


def read(path: Path, kind: type[Binding]) -> Binding:
    """Return the binding in the file.

    Raises:
        SetupError: there is no such file, or it is no binding of this kind.
    """
    try:
        data = path.read_bytes()
    except OSError as cause:
        raise errors.SetupError(
            f"Cannot read the binding {path.name}: {cause.strerror}."
        ) from cause
    return decode(data, kind, path.name)


def decode(data: bytes, kind: type[Binding], name: str) -> Binding:
    """Return the binding that a file of this name holds.

    Raises:
        SetupError: it is no binding of this kind.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise errors.SetupError(f"{name} is no {kind.__name__}: {cause}.") from cause


def _changed_at(path: Path) -> int:
    return path.stat().st_mtime_ns


async def follow(
    path: Path, kind: type[Binding], use: Callable[[Binding], Awaitable[None]], life: Life
) -> None:
    """Hand the binding to `use` now and after each change, until the process stops.

    A file that cannot be read leaves the last good binding in use, and is reported.
    """
    life.expect("binding")
    seen = 0
    while True:
        try:
            at = _changed_at(path)
            if at != seen:
                await use(read(path, kind))
                seen = at
                logger.info("binding read", extra={"binding": path.name})
            life.report("binding")
        except (OSError, errors.LogweirError) as error:
            life.report("binding", str(error))
        if await life.pause(POLL_S):
            return
