"""Records as columns: what blocks and segments hold, and what is joined, cut and merged.

    ingest: records -> Columns -> block        collector: blocks -> Columns -> segments
    keeper: segments -> Columns -> segment     query: one column of a segment at a time

A text column holds n texts joined by NUL: no text contains one, so the boundaries are where the
NULs are, and a literal that is searched for never spans two records. A column in which every
text is empty is stored as no bytes at all.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from logweir.core import errors
from logweir.core.record import Labels

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]
UInt32s = npt.NDArray[np.uint32]
UInt8s = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

TEXTS: Final = ("message", "trace", "span", "attributes", "extra")
"""The text columns, by the names of their fields."""

SEPARATOR: Final = b"\0"


class Columns(msgspec.Struct, frozen=True, eq=False):
    """n records. Arrays have shape (n,); `label_set` indexes `label_sets`.

    `time_ns` is int64 since the epoch, `block` the short form of the block's id, `index` the
    record's place in that block. `trace` and `span` are lower-case hex, `attributes` and
    `extra` raw JSON objects.
    """

    n: int
    time_ns: Int64s
    label_set: UInt32s
    label_sets: tuple[Labels, ...]
    message: bytes
    trace: bytes
    span: bytes
    attributes: bytes
    extra: bytes
    flags: UInt8s
    block: UInt64s
    index: UInt32s

    @property
    def text_bytes(self) -> int:
        """Bytes of all text columns, the measure for memory bounds."""
        return sum(len(getattr(self, name)) for name in TEXTS)


def join(texts: Sequence[bytes]) -> bytes:
    """Return a text column of these texts."""
    return column(SEPARATOR.join(texts), len(texts))


def column(joined: bytes, n: int) -> bytes:
    """Return n texts that were joined before as a column: empty when all of them are."""
    return b"" if len(joined) == n - 1 else joined


def count(column: bytes) -> int:
    """Return how many texts a column has that is not empty."""
    return 1 + len(column) - int(np.count_nonzero(np.frombuffer(column, np.uint8)))


def split(column: bytes, n: int) -> list[bytes]:
    """Return the n texts of a column: the inverse of `join`.

    Raises:
        FormatError: it has another number of texts.
    """
    texts = column.split(SEPARATOR) if column else [b""] * n
    _check_count(len(texts), n)
    return texts


def ends(column: bytes, n: int) -> Int64s:
    """Return where each of the n texts ends, shape (n,): the NULs, and the column's end.

    Raises:
        FormatError: it has another number of texts.
    """
    if not column:
        return np.zeros(n, np.int64)
    nuls = np.flatnonzero(np.frombuffer(column, np.uint8) == 0)
    _check_count(len(nuls) + 1, n)
    return np.append(nuls, len(column)).astype(np.int64, copy=False)


def _check_count(found: int, n: int) -> None:
    if found != n:
        raise errors.FormatError(f"A column has {found} texts, not {n}.")


def concat(parts: Sequence[Columns]) -> Columns:
    """Return all records of the parts, in their order."""
    if len(parts) == 1:
        return parts[0]
    label_sets, label_set = _join_label_sets(parts)
    return Columns(
        n=sum(part.n for part in parts),
        time_ns=np.concatenate([part.time_ns for part in parts]),
        label_set=label_set,
        label_sets=label_sets,
        flags=np.concatenate([part.flags for part in parts]),
        block=np.concatenate([part.block for part in parts]),
        index=np.concatenate([part.index for part in parts]),
        **{name: join_columns([(getattr(p, name), p.n) for p in parts]) for name in TEXTS},
    )


def join_columns(parts: Sequence[tuple[bytes, int]]) -> bytes:
    """Return one text column of several, each with its number of texts."""
    texts = [text for text, _ in parts]
    if not any(texts):
        return b""
    return SEPARATOR.join([text or SEPARATOR * (n - 1) for text, n in parts if n])


def _join_label_sets(parts: Sequence[Columns]) -> tuple[tuple[Labels, ...], UInt32s]:
    table: dict[Labels, int] = {}
    columns = []
    for part in parts:
        where = [table.setdefault(labels, len(table)) for labels in part.label_sets]
        columns.append(np.array(where, np.uint32)[part.label_set])
    return tuple(table), np.concatenate(columns)


def select(columns: Columns, keep: Bools) -> Columns:
    """Return the records where `keep`, shape (n,), is true; label sets that are left only."""
    kept = int(np.count_nonzero(keep))
    if kept == columns.n:
        return columns
    flags = keep.tolist()
    label_sets, label_set = _compact_label_sets(columns.label_sets, columns.label_set[keep])
    return Columns(
        n=kept,
        time_ns=columns.time_ns[keep],
        label_set=label_set,
        label_sets=label_sets,
        flags=columns.flags[keep],
        block=columns.block[keep],
        index=columns.index[keep],
        **{
            name: join(list(itertools.compress(split(getattr(columns, name), columns.n), flags)))
            if getattr(columns, name) and kept
            else b""
            for name in TEXTS
        },
    )


def _compact_label_sets(
    label_sets: tuple[Labels, ...], label_set: UInt32s
) -> tuple[tuple[Labels, ...], UInt32s]:
    used = np.zeros(len(label_sets), np.bool_)
    used[label_set] = True
    renumbered = (np.cumsum(used) - 1).astype(np.uint32)
    kept = tuple(itertools.compress(label_sets, used.tolist()))
    return kept, renumbered[label_set]


def empty() -> Columns:
    """Return no records."""
    return Columns(
        n=0,
        time_ns=np.zeros(0, np.int64),
        label_set=np.zeros(0, np.uint32),
        label_sets=(),
        message=b"",
        trace=b"",
        span=b"",
        attributes=b"",
        extra=b"",
        flags=np.zeros(0, np.uint8),
        block=np.zeros(0, np.uint64),
        index=np.zeros(0, np.uint32),
    )
