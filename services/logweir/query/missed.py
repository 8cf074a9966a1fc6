"""Reads what a pipeline was sent since a moment, and nobody heard: for the gaps of a hub.

    journal (a round of entries) -> store (new segments) -> take() the stored, then the entries

A block moves from the journal to the store, so each round reads the journal first; what is stored
by then is older than the entries of the round, so it is handed on first. Stored blocks come by the
milliseconds of their ids, and within one in the order of their segments, which collectors fill in
the order of the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Container,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Final

import msgspec
import numpy as np

from logweir.backends.heads import Head
from logweir.backends.journal import Entry
from logweir.backends.journal_tail import TailReader
from logweir.backends.segments_reader import Range, Reader, Snapshot
from logweir.core import beside, columns, errors, ids, segment
from logweir.core.columns import Columns
from logweir.core.names import PipelineId
from logweir.query import blocks

logger = logging.getLogger(__name__)

ROUND_BYTES: Final = 16 << 20
ROUND_ENTRIES: Final = 512
HEADS: Final = 256
"""Segments whose blocks are looked at in one read."""

_UUID_BYTES: Final = 16

Make = Callable[[], Columns | None]
Take = Callable[[int, int, Make], Awaitable[None]]
"""Takes a block: the short form of its id, its size in bytes, and what makes its records."""


class _Sighting(msgspec.Struct, frozen=True, order=True):
    """A block in a segment: its milliseconds, the segment's place, its first row there."""

    time_ms: int
    segment: int
    row: int
    block: int


class Missed:
    """Reads one pipeline's blocks that are not among the known ones."""

    def __init__(
        self, source: TailReader, reader: Reader, pipeline: PipelineId, known: Container[int]
    ) -> None:
        self._source, self._reader = source, reader
        self._pipeline = pipeline
        self._known = known
        self._read_segments: set[int] = set()

    async def blocks(self, since_ms: int) -> Collection[int]:
        """Return the short ids of all blocks that were appended since then.

        Raises:
            UnavailableError: the journal or the store does not answer.
        """
        found: dict[int, None] = {}

        async def note(block: int, _size_bytes: int, _make: Make) -> None:
            found[block] = None

        await self._rounds(since_ms, note, ids_only=True)
        return found

    async def read(self, since_ms: int, take: Take) -> None:
        """Take all blocks that were appended since then and before this call, the oldest first.

        Raises:
            UnavailableError: the journal or the store does not answer.
        """
        await self._rounds(since_ms, take, ids_only=False)

    async def _rounds(self, since_ms: int, take: Take, *, ids_only: bool) -> None:
        newest = await self._source.newest(self._pipeline)
        first = str(max(0, since_ms))
        while True:
            entries = [] if newest is None else await self._round(first, newest.id)
            await self._read_store(since_ms, take, ids_only=ids_only)
            for entry in entries:
                await self._take_entry(entry, take)
            if not entries:
                return
            first = f"({entries[-1].id}"

    async def _round(self, first: str, last: str) -> list[Entry]:
        """Return the next entries of the journal, as many as may be in memory at once."""
        found: list[Entry] = []
        size_bytes = 0
        while size_bytes < ROUND_BYTES and len(found) < ROUND_ENTRIES:
            page = await self._source.between(self._pipeline, first, last)
            if not page:
                break
            found += page
            size_bytes += sum(len(one.payload) for one in page)
            first = f"({page[-1].id}"
        return found

    async def _take_entry(self, entry: Entry, take: Take) -> None:
        if len(entry.uuid) != _UUID_BYTES:
            return  # no block; the collectors report it
        block = ids.short(entry.uuid)
        if block not in self._known:
            await take(
                block, len(entry.payload), lambda: blocks.decode(entry.payload, entry.repeats)
            )

    async def _read_store(self, since_ms: int, take: Take, *, ids_only: bool) -> None:
        """Take the blocks of segments that were not looked at yet."""
        async with self._reader.snapshot() as snapshot:
            keys = await snapshot.keys_created_since([self._pipeline], since_ms)
            # Ids rise in the order in which a collector stored its segments.
            fresh = [at for at in np.argsort(keys.id).tolist() if self._is_fresh(int(keys.id[at]))]
            heads = await snapshot.heads(keys.take(np.array(fresh, np.int64)))
            sighted: list[_Sighting] = []
            for start in range(0, len(heads), HEADS):
                sighted += await self._sight(snapshot, heads, start, since_ms)
            wanted: dict[int, list[int]] = {}
            for one in sorted(sighted):
                wanted.setdefault(one.block, []).append(one.segment)
            if not ids_only:
                await _take_stored(snapshot, heads, wanted, take)
                return
            for block in wanted:
                await take(block, 0, _make(None))

    def _is_fresh(self, segment_id: int) -> bool:
        is_fresh = segment_id not in self._read_segments
        self._read_segments.add(segment_id)
        return is_fresh

    async def _sight(
        self, snapshot: Snapshot, heads: Sequence[Head], start: int, since_ms: int
    ) -> list[_Sighting]:
        """Return where blocks that nobody heard stand in some of these segments."""
        places = {}
        for at, head in enumerate(heads[start : start + HEADS], start):
            with _damage_logged(head):
                places[at] = head.places["block"]
        pieces = await snapshot.pieces(
            [
                Range(heads[at].id, heads[at].min_ts, place.offset, place.length)
                for at, place in places.items()
            ]
        )
        found: list[_Sighting] = []
        for (at, place), piece in zip(places.items(), pieces, strict=True):
            with _damage_logged(heads[at]):
                numbers = segment.column_numbers(place, piece, heads[at].n).view(np.uint64)
                found += [
                    _Sighting(time_ms, at, row, block)
                    for block, row in zip(
                        *(one.tolist() for one in np.unique(numbers, return_index=True)),
                        strict=True,
                    )
                    if (time_ms := ids.short_time_ms(block)) >= since_ms
                    and block not in self._known
                ]
        return found


async def _take_stored(
    snapshot: Snapshot, heads: Sequence[Head], wanted: Mapping[int, Sequence[int]], take: Take
) -> None:
    """Take blocks in their order; a segment is in memory until its last one was taken."""
    left = Counter(itertools.chain.from_iterable(wanted.values()))
    opened: dict[int, dict[int, Columns]] = {}
    for block, segments in wanted.items():
        parts = []
        for at in segments:
            if at not in opened:
                own = [one for one, places in wanted.items() if at in places]
                opened[at] = await _blocks_of(snapshot, heads[at], own)
            part = opened[at].pop(block, None)
            parts += [] if part is None else [part]
            left[at] -= 1
            if not left[at]:
                del opened[at]
        if parts:  # several only where a partition ends inside of the block
            records = columns.concat(parts)
            await take(block, records.text_bytes, _make(records))


def _make(records: Columns | None) -> Make:
    return lambda: records


async def _blocks_of(snapshot: Snapshot, head: Head, wanted: Sequence[int]) -> dict[int, Columns]:
    """Return blocks of a segment; none when it is damaged."""
    with _damage_logged(head):
        places = head.places
        size_bytes = sum(place.length for place in places.values())
        (body,) = await snapshot.pieces([Range(head.id, head.min_ts, 0, size_bytes)])

        def cut() -> dict[int, Columns]:
            raw = {name: body[p.offset : p.offset + p.length] for name, p in places.items()}
            labels = beside.decode_label_sets(head.raw_label_sets, head.codec)
            return blocks.by_block(segment.decode_columns(head.n, places, raw, labels), wanted)

        return await asyncio.to_thread(cut)
    return {}


@contextlib.contextmanager
def _damage_logged(head: Head) -> Iterator[None]:
    """Leave out a segment that cannot be read: waiting for it would end all tails."""
    try:
        yield
    except errors.FormatError as error:
        logger.error("segment left out", extra={"segment": head.id, "why": str(error)})
