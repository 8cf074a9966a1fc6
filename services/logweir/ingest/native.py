"""The native form of POST /ingest: JSON objects, an array of them, or one a line.

    body -> decode() -> Decoded (a block's Part; what was refused and what is expired)

A whole body of good records takes the fast path: one typed decode, then checks a column at a
time. When any check fails, all records are looked at one by one, which finds the bad ones, names
them and keeps their neighbours. Both paths give the same result for the same records.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
import numpy as np

from logweir.core import bounds, errors, moments, record
from logweir.core.block import Part
from logweir.core.record import Labels
from logweir.ingest import fields, pieces

_CONTROL: Final = 1
_BRACKET: Final = 2
_BRACE: Final = 3
_MARKS: Final = bytes(
    _CONTROL if byte < 32 else {ord("["): _BRACKET, ord("{"): _BRACE}.get(byte, 0)
    for byte in range(256)
)
"""What matters of an attributes' bytes: control characters, and what opens a level."""

_ATTRIBUTES_CHECK_BYTES: Final = 4 * bounds.MAX_ATTRIBUTES
"""Below this length an object cannot have too many keys: `"a":1,` takes six bytes."""


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
    """A request's records. `expired` are indexes of records older than the retention."""

    part: Part
    rejected: list[Rejected]
    expired: list[int]

    @property
    def accepted(self) -> int:
        """Records that the answer says were accepted."""
        return len(self.part.times_ns) + len(self.expired)


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
    _check_old_days(decoded.part.times_ns, rules)
    return decoded


def _decode_fast(body: bytes, is_array: bool, rules: Rules) -> Decoded | None:
    """Decode a body of only good records; None when any record needs a closer look."""
    try:
        body.isascii() or body.decode()  # msgspec checks no UTF-8 inside of raw attributes
        records = _array_decoder.decode(body) if is_array else _record_decoder.decode_lines(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    pieces.check_count(len(records))
    if rules.promote or not records or not _columns_are_good(body, is_array, records):
        return None
    try:
        times_ns = _times(records, rules.arrival_ns)
        label_sets, label_set = _label_sets(records)
    except errors.BadRequestError:
        return None
    if min(times_ns) < rules.oldest_ns:
        return None
    if max(times_ns) > rules.arrival_ns + bounds.MAX_FUTURE_NS:
        return None
    return Decoded(
        part=Part(
            times_ns=times_ns,
            label_set=label_set,
            label_sets=label_sets,
            messages=[r.message for r in records],
            traces=_optional([r.trace_id or "" for r in records]),
            spans=_optional([r.span_id or "" for r in records]),
            attributes=_optional_raw([r.metadata for r in records]),
        ),
        rejected=[],
        expired=[],
    )


def _optional(texts: list[str]) -> list[str]:
    return texts if any(texts) else []


def _optional_raw(raws: list[msgspec.Raw]) -> list[bytes]:
    # A Raw is bytes-like, and joined as such; a copy of each would cost a third of the decode.
    return raws if any(raws) else []  # type: ignore[return-value]  # bytes-like, see above


def _columns_are_good(body: bytes, is_array: bool, records: Sequence[WireRecord]) -> bool:
    return (
        _ids_are_good([r.trace_id for r in records if r.trace_id])
        and _ids_are_good([r.span_id for r in records if r.span_id])
        and _attributes_are_good([r.metadata for r in records if r.metadata])
        and not (len(body) > bounds.MAX_RECORD_BYTES and pieces.has_large(body, is_array))
    )


def _ids_are_good(ids: list[str]) -> bool:
    """All are lower-case hex that is not too long."""
    if not ids:
        return True
    rest = "".join(ids).encode("utf-8", "replace").translate(None, fields.HEX_DIGITS)
    return not rest and max(map(len, ids)) <= fields.MAX_ID_BYTES


def _attributes_are_good(raws: list[msgspec.Raw]) -> bool:
    """All are flat enough, small enough objects, without control characters."""
    if not raws:
        return True
    joined = b"\0" + b"\0".join(raws)
    marks = np.frombuffer(joined.translate(_MARKS), np.uint8)
    places = np.flatnonzero(marks)
    begins = np.flatnonzero(marks[places] == _CONTROL)
    if len(begins) != len(raws) or not (marks[places[begins] + 1] == _BRACE).all():
        return False
    if int(np.diff(places[begins], append=len(joined)).max()) > _ATTRIBUTES_CHECK_BYTES:
        return False
    # Objects with fewer brackets than levels are allowed cannot be nested too deep.
    brackets = np.diff(begins, append=len(places)) - 1
    return int(brackets.max()) < bounds.MAX_JSON_DEPTH


def _times(records: Sequence[WireRecord], arrival_ns: int) -> list[int]:
    values = [r.timestamp for r in records]
    kinds = set(map(type, values))
    if kinds == {str}:
        return moments.from_texts(values)  # type: ignore[arg-type]  # all are, as just seen
    if kinds == {int}:
        return moments.from_integers(values)  # type: ignore[arg-type]  # likewise
    return [_time(value, arrival_ns) for value in values]


def _time(value: int | str | None, arrival_ns: int) -> int:
    if value is None:
        return arrival_ns
    return moments.from_integer(value) if isinstance(value, int) else moments.from_text(value)


def _label_sets(records: Sequence[WireRecord]) -> tuple[list[Labels], list[int]]:
    """The distinct label sets, and each record's index among them.

    Raises:
        BadRequestError: a label is over its bounds.
    """
    more = [tuple(r.labels.items()) if r.labels else () for r in records]
    sources = [
        (r.service, r.level, r.host, labels) for r, labels in zip(records, more, strict=True)
    ]
    table: dict[Labels, int] = {}
    by_source = {
        source: table.setdefault(fields.cached_labels(*source), len(table))
        for source in dict.fromkeys(sources)
    }
    label_set = [by_source[source] for source in sources]
    if len(table) > bounds.MAX_LABEL_SETS:
        raise errors.BadRequestError("too many label sets")
    return list(table), label_set


def _decode_each(pieces: Sequence[bytes], is_cleaned: bool, rules: Rules) -> Decoded:
    part = Part(times_ns=[], label_set=[], label_sets=[], messages=[])
    rejected: list[Rejected] = []
    expired: list[int] = []
    table: dict[Labels, int] = {}
    for index, piece in enumerate(pieces):
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
        part.label_set.append(table.setdefault(one.labels, len(table)))
        part.times_ns.append(one.time_ns)
        part.messages.append(one.message)
        part.traces.append(one.trace)
        part.spans.append(one.span)
        part.attributes.append(one.attributes)
        part.flags.append(one.flags)
        part.extras.append(one.extra)
    part.label_sets = list(table)
    return Decoded(part=part, rejected=rejected, expired=expired)


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


def _check_old_days(times_ns: Sequence[int], rules: Rules) -> None:
    edge_ns = rules.arrival_ns - bounds.OLD_DAY_AGE_DAYS * moments.NS_PER_DAY
    if not times_ns or min(times_ns) >= edge_ns:
        return
    days = {time_ns // moments.NS_PER_DAY for time_ns in times_ns if time_ns < edge_ns}
    if len(days) > bounds.MAX_OLD_DAYS:
        raise errors.BadRequestError(
            f"The request has records of {len(days)} different days older than "
            f"{bounds.OLD_DAY_AGE_DAYS} days, the most is {bounds.MAX_OLD_DAYS}.",
            hint="Sort old records by day and send each day by itself.",
        )
