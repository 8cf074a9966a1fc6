"""Records as clients see them: the one form that queries, tails and NDJSON share. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from logweir.core.record import Record

_encoder = msgspec.json.Encoder()
_NO_ATTRIBUTES = msgspec.Raw(b"{}")


class RecordView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record of an answer. `timestamp` is nanoseconds as decimal text: JavaScript's numbers
    cannot hold them. `flags` and `extra` appear only when ingest changed something."""

    id: str
    timestamp: str
    labels: dict[str, str]
    message: str
    trace_id: str
    span_id: str
    attributes: msgspec.Raw
    flags: int = 0
    extra: msgspec.Raw | None = None


def view(record: Record) -> RecordView:
    """Return a record's form for clients."""
    return RecordView(
        id=str(record.id),
        timestamp=str(record.id.time_ns),
        labels=dict(record.labels),
        message=record.message,
        trace_id=record.trace_id,
        span_id=record.span_id,
        attributes=_raw(record.attributes) if record.attributes else _NO_ATTRIBUTES,
        flags=record.flags,
        extra=_raw(record.extra) if record.extra else None,
    )


def _raw(json: bytes) -> msgspec.Raw:
    # Outside of JSON's strings a line break is a space; as such it does not end a line of NDJSON.
    if b"\n" in json or b"\r" in json:
        json = json.replace(b"\n", b" ").replace(b"\r", b" ")
    return msgspec.Raw(json)


def record_json(record: Record) -> bytes:
    """Return the record as one JSON object without a line break."""
    return _encoder.encode(view(record))


def size_bytes(record: Record) -> int:
    """Return about how many bytes the record takes in an answer, for bounds."""
    return 200 + len(record.message) + len(record.attributes) + len(record.extra)


def ndjson(records: Iterable[Record], end: object) -> bytes:
    """Return one record a line and `{"end": ...}` as the last."""
    lines = [record_json(record) for record in records]
    lines.append(_encoder.encode({"end": end}))
    return b"\n".join(lines) + b"\n"


def page(records: Iterable[Record], end: Mapping[str, object]) -> bytes:
    """Return one JSON object: the records, then the members of `end`."""
    joined = b",".join(record_json(record) for record in records)
    return b'{"records":[' + joined + b"]," + _encoder.encode(end)[1:]
