"""Numbers as byte planes, for zstd: columns of a segment, and its counts. Pure.

values -> (codec, parts) -> one frame, each part a block of its own -> values
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
import numpy.typing as npt

from logweir.core import errors
from logweir.core.columns import Int64s

ABSENT: Final = 0
DELTA32: Final = 2
DELTA64: Final = 3
PLANES: Final = 4
"""Codec ids, as `core.segment` lists them."""

Packed = tuple[int, list[bytes]]
"""A codec id, and the parts of what is compressed."""


def deltas(values: Int64s) -> Packed:
    """Return steps between numbers, zigzag, after the first of them; shape (n,), n > 0."""
    steps = np.diff(values)
    zigzag = ((steps << 1) ^ (steps >> 63)).view(np.uint64)
    start = struct.pack("<q", int(values[0]))
    if not len(zigzag) or int(zigzag.max()) < 1 << 32:
        return DELTA32, [start, *byte_planes(zigzag.astype(np.uint32), 4)]
    return DELTA64, [start, *byte_planes(zigzag, 8)]


def decode_deltas(data: bytes, n: int, width: int) -> Int64s:
    """Return n numbers of steps of `width` bytes, shape (n,).

    Raises:
        FormatError: these are not n steps.
    """
    if n < 1 or len(data) != 8 + width * (n - 1):
        raise errors.FormatError(f"A segment's column of numbers does not have {n} of them.")
    planes = np.frombuffer(data, np.uint8, offset=8).reshape(width, n - 1)
    kind: npt.DTypeLike = np.uint32 if width == 4 else np.uint64
    zigzag = np.ascontiguousarray(planes.T).view(kind).reshape(n - 1).astype(np.uint64)
    values = np.empty(n, np.int64)
    values[0] = struct.unpack_from("<q", data)[0]
    values[1:] = (zigzag >> np.uint64(1)).view(np.int64) ^ -(zigzag & np.uint64(1)).view(np.int64)
    return np.cumsum(values, out=values)


def byte_planes(values: npt.NDArray[np.unsignedinteger], width: int) -> list[bytes]:
    """Return the lowest bytes of all, then the next, `width` of them."""
    planes = np.ascontiguousarray(values.view(np.uint8).reshape(-1, width).T)
    return [plane.tobytes() for plane in planes]


def planes(values: npt.NDArray[np.unsignedinteger]) -> Packed:
    """Return unsigned numbers as planes of 1, 2 or 4 bytes after that width; shape (n,), n > 0."""
    top = int(values.max())
    if top == 0:
        return ABSENT, []
    if top < 1 << 8:
        return PLANES, [b"\1" + values.astype(np.uint8).tobytes()]
    if top < 1 << 16:
        return PLANES, [b"\2", *byte_planes(values.astype(np.uint16), 2)]
    return PLANES, [b"\4", *byte_planes(values.astype(np.uint32), 4)]


def decode_planes(data: bytes, n: int) -> Int64s:
    """Return n numbers of planes, shape (n,).

    Raises:
        FormatError: these are not n numbers.
    """
    kinds: dict[int, npt.DTypeLike] = {1: np.uint8, 2: np.uint16, 4: np.uint32}
    width = data[0] if data else 0
    if width not in kinds or len(data) != 1 + width * n:
        raise errors.FormatError(f"A segment's column of numbers does not have {n} of them.")
    planes = np.frombuffer(data, np.uint8, offset=1).reshape(width, n)
    return np.ascontiguousarray(planes.T).view(kinds[width]).reshape(n).astype(np.int64)
