"""The native form of POST /ingest: JSON objects, an array of them, or one a line.

    body -> decode() -> Decoded (a block's Part; what was refused and what is expired)

A whole body of good records takes the fast path: one typed decode, then checks a column at a
time. When any check fails, all records are looked at one by one, which finds the bad ones, names
them and keeps their neighbours. Both paths give the same result for the same records.
"""

from __future__ import annotations

import operator
import struct
from array import array
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

import msgspec
import numpy as np

from logweir.core import block, bounds, columns, errors, moments, record
from logweir.core.block import Part
from logweir.core.record import Labels
from logweir.ingest import fields, pieces
from logweir.ingest.sources import Source, Sources

_BRACE: Final = ord("{")
_TO_BRACE: Final = ord("{") ^ ord("[")
"""The bit that makes a bracket a brace: both open a level."""

_NO_CONTROL: Final = bytes(range(32, 256))
_FEW: Final = 16
"""Below so many records numpy's calls cost more than a loop over them."""

_SEPARATED_HEX: Final = fields.HEX_DIGITS + columns.SEPARATOR
_source = operator.attrgetter("service", "level", "host")

_ATTRIBUTES_CHECK_BYTES: Final = 4 * bounds.MAX_ATTRIBUTES
"""Below this length an object cannot have too many keys: `"a":1,` takes six bytes."""


_sources = Sources()

_INT64 = struct.Struct("<q")
_FIRST_LABEL_SET: Final = bytes(4)
_NO_TIME_NS: Final = (1 << 63) - 1


class WireRecord(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One record as it is sent. `metadata` is kept byte for byte as the record's attributes."""

    message: str
    level: str
    service: str
    timestamp: int | str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    host: str | None = None
    metadata: msgspec.Raw = msgspec.Raw(b"")
    labels: Annotated[dict[str, str], msgspec.Meta(max_length=bounds.MAX_LABELS)] | None = None


class Rejected(msgspec.Struct, frozen=True):
    """A record that was refused: its index in the request, and why."""

    index: int
    reason: str


class Decoded(msgspec.Struct, frozen=True):
    """A request's records. `expired` are indexes of records older than the retention,
    `oldest_ns` is the time of the first of the others; the largest integer when there is none."""

    part: Part
    oldest_ns: int
    rejected: list[Rejected]
    expired: list[int]

    @property
    def accepted(self) -> int:
        """Records that the answer says were accepted."""
        return self.part.n + len(self.expired)


class Rules(msgspec.Struct, frozen=True):
    """What decoding needs to know: arrival (ns), the retention, attribute paths to promote."""

    arrival_ns: int
    retention_days: int
    promote: tuple[str, ...] = ()

    @property
    def oldest_ns(self) -> int:
        """Records before this are expired."""
        return self.arrival_ns - self.retention_days * moments.NS_PER_DAY


_record_decoder = msgspec.json.Decoder(WireRecord)
_array_decoder = msgspec.json.Decoder(list[WireRecord])


def decode(body: bytes, rules: Rules) -> Decoded:
    """Return the records of a request's decompressed body.

    Raises:
        BadRequestError: the body is no JSON at all, or holds no record, or too many old days.
        TooLargeError: it holds more than `bounds.MAX_RECORDS`.
    """
    start = body.lstrip(b" \t\r\n")[:1]
    if start not in (b"[", b"{"):
        raise errors.BadRequestError(
            f"The body begins with {start!r}, which is neither a JSON object nor an array."
            if start
            else "The body is empty.",
            hint='Send {"message": "...", "level": "info", "service": "..."}, an array of such '
            "objects, or one a line.",
        )
    is_array = start == b"["
    decoded = None
    is_plain = b"\0" not in body and not fields.has_bad_escape(body)
    if is_plain and pieces.is_modest(body, is_array):
        decoded = _decode_fast(body, is_array, rules)
    if decoded is None:
        decoded = _decode_each(*pieces.find(body, is_array), rules)
    _check_old_days(decoded, rules)
    return decoded


def _decode_fast(body: bytes, is_array: bool, rules: Rules) -> Decoded | None:
    """Decode a body of only good records; None when any record needs a closer look."""
    try:
        body.isascii() or body.decode()  # msgspec checks no UTF-8 inside of raw attributes
        records = _array_decoder.decode(body) if is_array else _record_decoder.decode_lines(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    pieces.check_count(len(records))
    if rules.promote or not records or not _sizes_are_good(body, is_array):
        return None
    if len(records) == 1:
        return _decode_single(records[0], rules)
    try:
        times_ns = _times(records, rules.arrival_ns)
        label_sets, label_set = _label_sets(records)
    except errors.BadRequestError:
        return None
    low_ns, high_ns = _extent(times_ns)
    if low_ns < rules.oldest_ns or high_ns > rules.arrival_ns + bounds.MAX_FUTURE_NS:
        return None
    trace = _ids([r.trace_id or "" for r in records])
    span = _ids([r.span_id or "" for r in records])
    attributes = _attributes([r.metadata for r in records])
    if trace is None or span is None or attributes is None:
        return None
    part = Part(
        n=len(records),
        times=times_ns.tobytes(),
        label_set=label_set.tobytes(),
        label_sets=label_sets,
        message=columns.column("\0".join([r.message for r in records]).encode(), len(records)),
        trace=trace,
        span=span,
        attributes=attributes,
    )
    return Decoded(part=part, oldest_ns=low_ns, rejected=[], expired=[])


def _decode_single(record: WireRecord, rules: Rules) -> Decoded | None:
    """The same of one record, without making columns of it: half of a small request's decoding."""
    _sources.make_room()
    labels = (tuple(record.labels.items()),) if record.labels else ()
    try:
        time_ns = _time(record.timestamp, rules.arrival_ns)
        number = _sources[(*_source(record), *labels)]
    except errors.BadRequestError:
        return None
    if not rules.oldest_ns <= time_ns <= rules.arrival_ns + bounds.MAX_FUTURE_NS:
        return None
    trace, span = _ids([record.trace_id or ""]), _ids([record.span_id or ""])
    attributes = bytes(record.metadata)
    if trace is None or span is None or (attributes and not _is_good_object(attributes)):
        return None
    part = Part(
        n=1,
        times=_INT64.pack(time_ns),
        label_set=_FIRST_LABEL_SET,
        label_sets=[_sources.label_sets[number]],
        message=record.message.encode(),
        trace=trace,
        span=span,
        attributes=attributes,
    )
    return Decoded(part=part, oldest_ns=time_ns, rejected=[], expired=[])


def _extent(times_ns: array[int]) -> tuple[int, int]:
    """The first and the last of some times."""
    if len(times_ns) < _FEW:
        return min(times_ns), max(times_ns)
    found = np.frombuffer(times_ns, np.int64)
    return int(found.min()), int(found.max())


def _sizes_are_good(body: bytes, is_array: bool) -> bool:
    return len(body) <= bounds.MAX_RECORD_BYTES or not pieces.has_large(body, is_array)


def _ids(ids: list[str]) -> bytes | None:
    """A column of ids; None when any is not lower-case hex, or too long."""
    joined = "\0".join(ids).encode("utf-8", "replace")
    if len(joined) == len(ids) - 1:
        return b""
    if joined.translate(None, _SEPARATED_HEX) or not _are_short(ids, joined):
        return None
    return joined


def _are_short(ids: list[str], joined: bytes) -> bool:
    size = len(ids[0])
    if size <= fields.MAX_ID_BYTES and joined[size :: size + 1] == b"\0" * (len(ids) - 1):
        return True  # all of one length, as nearly always
    return max(map(len, ids)) <= fields.MAX_ID_BYTES


def _attributes(raws: list[msgspec.Raw]) -> bytes | None:
    """A column of attributes; None when one has to be looked at closer."""
    # A Raw is bytes-like, and joined as such; a copy of each would cost a third of the decode.
    column = columns.join(raws)
    if not column:
        return b""
    if len(raws) < _FEW:
        return column if all(map(_is_good_object, map(bytes, filter(None, raws)))) else None
    checked = column if all(raws) else b"\0".join([raw for raw in raws if raw])
    return column if _are_good_objects(checked) else None


def _is_good_object(raw: bytes) -> bool:
    """It is a flat enough, small enough object without control characters."""
    return (
        raw[0] == _BRACE
        and len(raw) <= _ATTRIBUTES_CHECK_BYTES
        and not raw.translate(None, _NO_CONTROL)
        and raw.count(b"{") + raw.count(b"[") < bounds.MAX_JSON_DEPTH
    )


def _are_good_objects(joined: bytes) -> bool:
    """All of these NUL-joined texts, none of them empty, are what `_is_good_object` wants."""
    data = np.frombuffer(b"\0" + joined, np.uint8)
    begins = np.flatnonzero(data < 32)
    if not (data[begins] == 0).all() or not (data[begins + 1] == _BRACE).all():
        return False
    if int(np.diff(begins, append=len(data)).max()) - 1 > _ATTRIBUTES_CHECK_BYTES:
        return False
    # Objects with fewer brackets than levels are allowed cannot be nested too deep.
    opened = np.flatnonzero(data | _TO_BRACE == _BRACE)
    before = np.searchsorted(opened, begins)
    return int(np.diff(before, append=len(opened)).max()) < bounds.MAX_JSON_DEPTH


def _times(records: Sequence[WireRecord], arrival_ns: int) -> array[int]:
    values = [r.timestamp for r in records]
    kinds = set(map(type, values))
    if kinds == {int}:
        return moments.from_integers(values)  # type: ignore[arg-type]  # all are, as just seen
    if kinds == {str}:
        return array("q", moments.from_texts(values))  # type: ignore[arg-type]  # likewise
    return array("q", [_time(value, arrival_ns) for value in values])


def _time(value: int | str | None, arrival_ns: int) -> int:
    if value is None:
        return arrival_ns
    return moments.from_integer(value) if isinstance(value, int) else moments.from_text(value)


def _label_sets(records: Sequence[WireRecord]) -> tuple[list[Labels], array[int]]:
    """The distinct label sets, and each record's index among them.

    Raises:
        BadRequestError: a label is over its bounds.
    """
    _sources.make_room()
    more = [r.labels for r in records]
    sources: Iterable[Source] = map(_source, records)
    if any(more):
        pairs = (tuple(labels.items()) if labels else () for labels in more)
        sources = ((*source, one) for source, one in zip(sources, pairs, strict=True))
    numbers = list(map(_sources.__getitem__, sources))
    places = {number: place for place, number in enumerate(dict.fromkeys(numbers))}
    if len(places) > bounds.MAX_LABEL_SETS:
        raise errors.BadRequestError("too many label sets")
    label_sets = [_sources.label_sets[number] for number in places]
    return label_sets, array("I", map(places.__getitem__, numbers))


def _decode_each(raws: Sequence[bytes], is_cleaned: bool, rules: Rules) -> Decoded:
    good: list[_One] = []
    label_set: list[int] = []
    rejected: list[Rejected] = []
    expired: list[int] = []
    table: dict[Labels, int] = {}
    for index, piece in enumerate(raws):
        try:
            one = _decode_one(piece, is_cleaned, rules)
            if one.time_ns < rules.oldest_ns:
                expired.append(index)
                continue
            if one.labels not in table and len(table) >= bounds.MAX_LABEL_SETS:
                raise errors.BadRequestError(
                    f"labels: the request has more than {bounds.MAX_LABEL_SETS} different sets"
                )
        except errors.LogweirError as error:
            rejected.append(Rejected(index, f"{error.message}. {error.hint}".rstrip(". ") or "bad"))
            continue
        label_set.append(table.setdefault(one.labels, len(table)))
        good.append(one)
    part = block.part(
        times_ns=[one.time_ns for one in good],
        label_set=label_set,
        label_sets=list(table),
        messages=[one.message for one in good],
        traces=[one.trace for one in good],
        spans=[one.span for one in good],
        attributes=[one.attributes for one in good],
        flags=[one.flags for one in good],
        extras=[one.extra for one in good],
    )
    oldest_ns = min((one.time_ns for one in good), default=_NO_TIME_NS)
    return Decoded(part=part, oldest_ns=oldest_ns, rejected=rejected, expired=expired)


class _One(msgspec.Struct):
    """A good record, looked at by itself."""

    time_ns: int
    labels: Labels
    message: str
    trace: str
    span: str
    attributes: bytes
    flags: int
    extra: bytes


def _decode_one(piece: bytes, is_cleaned: bool, rules: Rules) -> _One:
    if len(piece) > bounds.MAX_RECORD_BYTES:
        raise errors.TooLargeError(
            f"{len(piece)} bytes, a record may have {bounds.MAX_RECORD_BYTES}"
        )
    clean, is_changed = fields.sanitise(piece)
    # Whose text it was that had to be sanitised before, only the replacement tells.
    is_changed |= is_cleaned and any(mark in clean for mark in fields.REPLACEMENTS)
    try:
        wire = _record_decoder.decode(clean)
        attributes = fields.attributes(bytes(wire.metadata))
        promoted = fields.promoted(attributes, rules.promote)
    except RecursionError as cause:
        raise fields.too_deep() from cause
    except (msgspec.MsgspecError, UnicodeDecodeError) as cause:
        raise errors.BadRequestError(str(cause).replace("`$.", "`")) from cause
    time_ns = _time(wire.timestamp, rules.arrival_ns)
    flags, extra = (record.FLAG_SANITISED if is_changed else 0), b""
    if time_ns > rules.arrival_ns + bounds.MAX_FUTURE_NS:
        extra = msgspec.json.encode({"timestamp": wire.timestamp})
        time_ns, flags = rules.arrival_ns, flags | record.FLAG_FUTURE
    return _One(
        time_ns=time_ns,
        labels=fields.labels_of(
            wire.service, wire.level, wire.host, promoted | (wire.labels or {})
        ),
        message=wire.message,
        trace=fields.hex_id("trace_id", wire.trace_id),
        span=fields.hex_id("span_id", wire.span_id),
        attributes=attributes,
        flags=flags,
        extra=extra,
    )


def _check_old_days(decoded: Decoded, rules: Rules) -> None:
    edge_ns = rules.arrival_ns - bounds.OLD_DAY_AGE_DAYS * moments.NS_PER_DAY
    if decoded.oldest_ns >= edge_ns:
        return
    old = (time_ns for time_ns in array("q", decoded.part.times) if time_ns < edge_ns)
    days = {time_ns // moments.NS_PER_DAY for time_ns in old}
    if len(days) > bounds.MAX_OLD_DAYS:
        raise errors.BadRequestError(
            f"The request has records of {len(days)} different days older than "
            f"{bounds.OLD_DAY_AGE_DAYS} days, the most is {bounds.MAX_OLD_DAYS}.",
            hint="Sort old records by day and send each day by itself.",
        )
