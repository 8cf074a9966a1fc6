"""A block: one Redis stream entry, holding one or more whole requests as compressed columns.

    requests of one pipeline -> encode() -> stream entry -> decode() -> Columns -> segment

Layout, version 1, little-endian:

    "LWB" | version u8 | CRC32C u32 of all that follows | header length u32 | header | body

The header is a MessagePack array (`Header`), the body one zstd frame of the columns in the order
of `_ORDER`, whose lengths stand in the header; a column without content has length 0. `time` is
int64, `label_set` uint32, `flags` uint8, `label_sets` MessagePack, the others NUL-joined text.
A reader of version N reads every version up to N; a newer one is `UnknownVersionError`.
"""

from __future__ import annotations

import itertools
import struct
from array import array
from collections.abc import Sequence
from typing import Annotated, Final

import google_crc32c
import msgspec
import numpy as np

from logweir.core import bounds, columns, errors, frames, ids
from logweir.core.columns import Columns
from logweir.core.names import PipelineId, TenantId
from logweir.core.record import Labels

VERSION: Final = 1
LEVEL: Final = 1
"""zstd level: higher ones cost ingest more than Redis saves."""

_MAGIC: Final = b"LWB"
_HEAD = struct.Struct("<3sBII")
_ORDER: Final = (
    "time",
    "label_set",
    "flags",
    "label_sets",
    "message",
    "trace",
    "span",
    "attributes",
    "extra",
)
_MAX_BODY_BYTES = 8 * bounds.MAX_DECODED_BYTES
"""No block decompresses to more; what claims to is not ours."""

_label_sets_encoder = msgspec.msgpack.Encoder()
_label_sets_decoder = msgspec.msgpack.Decoder(tuple[Labels, ...])
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError)
"""What msgspec raises for bytes that it cannot read."""

# The store holds these as int8: a header that claims more is refused when it is read.
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Int64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Uuid = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Hash = Annotated[bytes, msgspec.Meta(max_length=16)]
Lengths = Annotated[tuple[Count, ...], msgspec.Meta(min_length=len(_ORDER), max_length=len(_ORDER))]


class Request(msgspec.Struct, frozen=True, array_like=True):
    """One request of a block, as its ledger rows need it.

    `key` is empty or the 16-byte hash of the `Idempotency-Key`; `producer` is empty or the 16
    bytes of a producer's UUID, with its `epoch` and `sequence`. `records` are in the block,
    `expired` were older than the retention at arrival and are only counted. `fingerprint` is of
    the decompressed body (int64), `size_bytes` its length.
    """

    records: Count
    expired: Count
    size_bytes: Count
    fingerprint: Int64
    key: Hash = b""
    producer: Hash = b""
    epoch: Count = 0
    sequence: Count = 0

    @property
    def accepted(self) -> int:
        """Records that the sender was told are accepted."""
        return self.records + self.expired


class Header(msgspec.Struct, frozen=True, array_like=True):
    """What a block says about itself. `uuid` is a UUIDv7, `refused` counts refusals by reason."""

    uuid: Uuid
    tenant: TenantId
    pipeline: PipelineId
    requests: tuple[Request, ...]
    lengths: Lengths
    refused: dict[str, Count]

    @property
    def accepted(self) -> int:
        """Records that the block accounts for."""
        return sum(request.accepted for request in self.requests)

    @property
    def records(self) -> int:
        """Records that the block holds."""
        return sum(request.records for request in self.requests)

    @property
    def size_bytes(self) -> int:
        """Decompressed bytes of the requests' bodies."""
        return sum(request.size_bytes for request in self.requests)


class Part(msgspec.Struct, frozen=True, eq=False):
    """The n records of one request as columns, ready to be joined with others; `part` makes one.

    `times` are n int64, `label_set` n uint32 that index `label_sets`. The others are NUL-joined
    texts as `core.columns` has them, `flags` n uint8; without a byte no record has any.
    """

    n: int
    times: bytes
    label_set: bytes
    label_sets: list[Labels]
    message: bytes
    trace: bytes = b""
    span: bytes = b""
    attributes: bytes = b""
    flags: bytes = b""
    extra: bytes = b""


def part(
    times_ns: Sequence[int],
    label_set: Sequence[int],
    label_sets: list[Labels],
    messages: Sequence[str],
    traces: Sequence[str] = (),
    spans: Sequence[str] = (),
    attributes: Sequence[bytes] = (),
    flags: Sequence[int] = (),
    extras: Sequence[bytes] = (),
) -> Part:
    """Return the part of records given one by one: sequences of equal length, or empty ones."""
    return Part(
        n=len(times_ns),
        times=array("q", times_ns).tobytes(),
        label_set=array("I", label_set).tobytes(),
        label_sets=label_sets,
        message=columns.join([text.encode() for text in messages]),
        trace=columns.join([text.encode() for text in traces]),
        span=columns.join([text.encode() for text in spans]),
        attributes=columns.join(attributes),
        flags=bytes(flags) if any(flags) else b"",
        extra=columns.join(extras),
    )


def encode(
    uuid: bytes,
    tenant: TenantId,
    pipeline: PipelineId,
    requests: Sequence[tuple[Request, Part]],
    refused: dict[str, int],
) -> bytes:
    """Return the block of these requests, in their order."""
    parts = [part for _, part in requests]
    label_sets, label_set = _join_label_sets(parts)
    content = (
        b"".join([one.times for one in parts]),
        label_set,
        _flags(parts),
        _label_sets_encoder.encode(label_sets),
        *(columns.join_columns([(getattr(p, name), p.n) for p in parts]) for name in columns.TEXTS),
    )
    header = msgspec.msgpack.encode(
        Header(
            uuid=uuid,
            tenant=tenant,
            pipeline=pipeline,
            requests=tuple([request for request, _ in requests]),
            lengths=tuple(map(len, content)),
            refused=refused,
        )
    )
    body = frames.compress(b"".join(content), LEVEL)
    rest = struct.pack("<I", len(header)) + header + body
    return struct.pack("<3sBI", _MAGIC, VERSION, google_crc32c.value(rest)) + rest


def _join_label_sets(parts: Sequence[Part]) -> tuple[list[Labels], bytes]:
    if len(parts) == 1:
        return parts[0].label_sets, parts[0].label_set
    table: dict[Labels, int] = {}
    joined = array("I")
    for one in parts:
        where = [table.setdefault(labels, len(table)) for labels in one.label_sets]
        if len(where) == 1:
            joined.extend(where * one.n)
        else:
            joined.extend([where[index] for index in array("I", one.label_set)])
    return list(table), joined.tobytes()


def _flags(parts: Sequence[Part]) -> bytes:
    found = [one.flags for one in parts]
    if not any(found):
        return b""
    return b"".join([one.flags or bytes(one.n) for one in parts])


def header(data: bytes) -> Header:
    """Check the block and return its header, without decompressing the columns.

    Raises:
        UnknownVersionError: it was written by a newer program; leave it to one.
        FormatError: it is no block, or damaged.
    """
    return _open(data)[0]


def decode(data: bytes) -> tuple[Header, Columns]:
    """Return the header and the records of a block.

    Raises:
        UnknownVersionError: it was written by a newer program; leave it to one.
        FormatError: it is no block, or damaged.
    """
    found, body = _open(data)
    content = frames.decompress(body, "The block's body", max_bytes=_MAX_BODY_BYTES)
    if len(content) != sum(found.lengths):
        raise errors.FormatError(
            f"The block has {len(content)} bytes of columns, its header says {found.lengths}."
        )
    cuts = itertools.accumulate(found.lengths, initial=0)
    column = {
        name: content[start : start + length]
        for name, start, length in zip(_ORDER, cuts, found.lengths, strict=False)
    }
    _check_sizes(found, column)
    return found, _columns(found, column)


def _open(data: bytes) -> tuple[Header, memoryview]:
    if len(data) < _HEAD.size or data[:3] != _MAGIC:
        raise errors.FormatError(f"{len(data)} bytes that do not begin as a block does.")
    _, version, crc, header_length = _HEAD.unpack_from(data)
    if version > VERSION:
        raise errors.UnknownVersionError(
            f"The block has version {version}, this program knows up to {VERSION}.",
            hint="Run the newer version of the collectors again.",
        )
    view = memoryview(data)
    if version < 1 or google_crc32c.value(bytes(view[8:])) != crc:
        raise errors.FormatError("The block's checksum does not match its content.")
    try:
        found = msgspec.msgpack.decode(view[12 : 12 + header_length], type=Header)
    except _UNREADABLE as cause:
        raise errors.FormatError(f"The block's header cannot be read: {cause}.") from cause
    if not all(len(r.key) in (0, 16) and len(r.producer) in (0, 16) for r in found.requests):
        raise errors.FormatError("The block's header has a key or a producer of a wrong length.")
    return found, view[12 + header_length :]


def _check_sizes(found: Header, column: dict[str, bytes]) -> None:
    n = found.records
    sizes = {name: len(column[name]) for name in ("time", "label_set", "flags")}
    if sizes["time"] != 8 * n or sizes["label_set"] != 4 * n or sizes["flags"] not in (0, n):
        raise errors.FormatError(f"The block's columns do not all have {n} records: {sizes}.")
    for name in columns.TEXTS:
        text = column[name]
        if text and columns.count(text) != n:
            raise errors.FormatError(f"The block's column {name} does not have {n} texts.")
        if not (text.isascii() or _is_utf8(text)):
            raise errors.FormatError(f"The block's column {name} is not UTF-8.")


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _columns(found: Header, column: dict[str, bytes]) -> Columns:
    n = found.records
    label_set = np.frombuffer(column["label_set"], np.uint32)
    try:
        label_sets = _label_sets_decoder.decode(column["label_sets"])
    except _UNREADABLE as cause:
        raise errors.FormatError(f"The block's label sets cannot be read: {cause}.") from cause
    if n and int(label_set.max()) >= len(label_sets):
        raise errors.FormatError("The block names a label set that it does not hold.")
    texts = {name: column[name] for name in columns.TEXTS}
    return Columns(
        n=n,
        time_ns=np.frombuffer(column["time"], np.int64),
        label_set=label_set,
        label_sets=label_sets,
        flags=np.frombuffer(column["flags"] or bytes(n), np.uint8),
        block=np.full(n, ids.short(found.uuid), np.uint64),
        index=np.arange(n, dtype=np.uint32),
        **{name: t if t.strip(columns.SEPARATOR) else b"" for name, t in texts.items()},
    )


def request_slices(found: Header) -> list[slice]:
    """Return where each request's records stand in the block's columns."""
    cuts = list(itertools.accumulate((r.records for r in found.requests), initial=0))
    return [slice(start, stop) for start, stop in itertools.pairwise(cuts)]
