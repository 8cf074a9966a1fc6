"""What stands beside a segment's columns: its label sets, and its counts per minute. Pure.

    Columns -> encode_label_sets(), encode_counts() -> values of the row -> decode...()

The forms by the segment's version are listed in `core.segment`.
"""

from __future__ import annotations

import struct
from typing import Final

import google_crc32c
import msgspec
import numpy as np

from logweir.core import columns, errors, frames, planes
from logweir.core.columns import Int64s
from logweir.core.record import Labels

VERSION: Final = 2
"""Of segments; see `core.segment`."""

MINUTE_NS: Final = 60_000_000_000
_LEVEL: Final = 1
_MAX_BYTES: Final = 1 << 30
_CRC = struct.Struct("<I")
PREFIX_BYTES: Final = _CRC.size + 18
"""A checksum and the longest header of a zstd frame."""

_COUNTS = struct.Struct("<BIIq")
_labels_encoder = msgspec.json.Encoder()
_labels_decoder = msgspec.json.Decoder(tuple[Labels, ...])


def check_version(codec_version: int) -> None:
    """Raise UnknownVersionError when a newer program wrote a segment."""
    if codec_version > VERSION:
        raise errors.UnknownVersionError(
            f"The segment has version {codec_version}, this program knows up to {VERSION}."
        )


def label_sets_bytes(data: bytes, codec_version: int) -> int:
    """Return what label sets take as JSON. Their first `PREFIX_BYTES` are enough, but for version
    1; of damaged ones the bytes at hand are counted."""
    try:
        return frames.content_bytes(data[_CRC.size :], "It") if codec_version == 2 else len(data)
    except errors.FormatError:
        return len(data)


def encode_label_sets(label_sets: tuple[Labels, ...]) -> bytes:
    """Return the label sets, as the current version has them."""
    return _checked(frames.compress(_labels_encoder.encode(label_sets), _LEVEL))


def decode_label_sets(data: bytes, codec_version: int) -> tuple[Labels, ...]:
    """Return the label sets of a segment's row.

    Raises:
        UnknownVersionError: a newer program wrote them.
        FormatError: the bytes are damaged.
    """
    check_version(codec_version)
    if codec_version >= 2:
        data = _opened(data, "label sets")
    try:
        return _labels_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as cause:
        raise errors.FormatError(f"A segment's label sets cannot be read: {cause}.") from cause


class Counts(msgspec.Struct, frozen=True, eq=False):
    """How many records each minute and label set has; arrays of one shape.

    `minute` counts since the epoch, `label_set` indexes the segment's label sets.
    """

    minute: Int64s
    label_set: Int64s
    count: Int64s


def encode_counts(time_ns: Int64s, label_set: columns.UInt32s) -> bytes:
    """Return the counts per minute and label set, as the current version has them."""
    minute = time_ns // MINUTE_NS
    first = int(minute.min())
    sets = int(label_set.max()) + 1
    keys, count = np.unique((minute - first) * sets + label_set, return_counts=True)
    codec, steps = planes.deltas(keys)
    head = _COUNTS.pack(codec, len(keys), sets, first)
    parts = [head + steps[0], *steps[1:], *planes.byte_planes(count.astype(np.uint32), 4)]
    return _checked(frames.compress_parts(parts, _LEVEL))


def decode_counts(data: bytes, codec_version: int) -> Counts:
    """Return what `encode_counts` of a version wrote.

    Raises:
        UnknownVersionError: a newer program wrote them.
        FormatError: the bytes are damaged.
    """
    check_version(codec_version)
    if codec_version < 2:
        return _decode_counts_v1(data)
    raw = _opened(data, "counts")
    if len(raw) < _COUNTS.size:
        raise errors.FormatError(f"A segment's counts of {len(raw)} bytes are damaged.")
    codec, n, sets, first = _COUNTS.unpack_from(raw)
    end = len(raw) - 4 * n
    if codec not in (planes.DELTA32, planes.DELTA64) or end < _COUNTS.size or not sets:
        raise errors.FormatError(f"A segment's counts of {len(raw)} bytes are damaged.")
    keys = planes.decode_deltas(raw[_COUNTS.size : end], n, 4 if codec == planes.DELTA32 else 8)
    return Counts(keys // sets + first, keys % sets, planes.decode_planes(b"\4" + raw[end:], n))


def _decode_counts_v1(data: bytes) -> Counts:
    raw = frames.decompress(data, "A segment's counts", max_bytes=_MAX_BYTES)
    if not raw or len(raw) % (3 * 8):
        raise errors.FormatError(f"A segment's counts of {len(raw)} bytes are damaged.")
    minute, label_set, count = np.frombuffer(raw, "<i8").reshape(3, -1)
    return Counts(minute, label_set, count)


def _checked(frame: bytes) -> bytes:
    """What has no place in the layout carries its checksum in front."""
    return _CRC.pack(google_crc32c.value(frame)) + frame


def _opened(data: bytes, what: str) -> bytes:
    frame = data[_CRC.size :]
    if len(data) < _CRC.size or google_crc32c.value(frame) != _CRC.unpack_from(data)[0]:
        raise errors.FormatError(f"A segment's {what} do not match their checksum.")
    return frames.decompress(frame, f"A segment's {what}", max_bytes=_MAX_BYTES)
