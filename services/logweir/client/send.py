"""`logweir send`: lines of a file or a pipe as records, in batches that may be retried.

    lines -> records -> batches (a key each) -> POST /ingest, again until it is taken

A line that is a record of the native form goes as it is, another JSON object becomes the attributes
of one, any other line the message of one.
Each batch has a producer's key, so a retry never stores it twice.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import httpx2
import msgspec

from logweir.client import api
from logweir.client.api import AnswerError, Target
from logweir.core import bounds, errors, ids

BATCH_RECORDS: Final = 1000
BATCH_BYTES: Final = 1 << 20
GIVE_UP_S: Final = 120.0
"""How long one batch is tried; `up` restarts within seconds."""

NATIVE_FIELDS: Final = frozenset(
    {
        "message",
        "level",
        "service",
        "timestamp",
        "trace_id",
        "span_id",
        "host",
        "metadata",
        "labels",
    }
)
LIFTED: Final[Mapping[str, type | tuple[type, ...]]] = {
    "service": str,
    "level": str,
    "host": str,
    "timestamp": (str, int),
}
"""What is taken from somebody else's JSON when it is there and of these types."""

_FIRST_WAIT_S: Final = 0.2
_LONGEST_WAIT_S: Final = 5.0


class Sent(msgspec.Struct):
    """What was sent. `rejected` holds (line from 1, reason) of lines that were refused."""

    records: int = 0
    requests: int = 0
    receipt: str = ""
    rejected: list[tuple[int, str]] = []


class Defaults(msgspec.Struct, frozen=True):
    """Fields of records that do not name them."""

    service: str
    level: str
    host: str


def record_of(line: bytes, defaults: Defaults) -> bytes:
    """Return a line as a record of the native form, JSON."""
    text = line.decode("utf-8", "replace")
    fields = _object(text)
    if not fields:
        fields = {"message": text}
    elif not isinstance(fields.get("message"), str) or fields.keys() - NATIVE_FIELDS:
        # Somebody else's JSON: kept whole, and its own message is shown where it has one.
        message = next(
            (fields[k] for k in ("message", "msg") if isinstance(fields.get(k), str)), text
        )
        lifted = {k: fields[k] for k, kind in LIFTED.items() if isinstance(fields.get(k), kind)}
        fields = {"message": message, "metadata": fields, **lifted}
    whole = {"service": defaults.service, "level": defaults.level, **fields}
    if defaults.host:
        whole.setdefault("host", defaults.host)
    return msgspec.json.encode(whole)


def _object(text: str) -> dict[str, Any]:
    """The JSON object that a line is; empty when it is none, or only looks like one."""
    if not text.lstrip().startswith("{"):
        return {}
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        return {}


def batches(
    lines: Iterable[bytes | None],
    defaults: Defaults,
    refuse: Callable[[int, str], None],
    max_records: int = BATCH_RECORDS,
) -> Iterator[tuple[list[int], bytes]]:
    """Yield (line numbers from 1, NDJSON body).

    Args:
        lines: None among them means that no more come for a while; empty ones are passed over.
        defaults: of records that do not name them.
        refuse: gets the number of a line that cannot be a record, and why.
        max_records: of one batch.
    """
    numbers: list[int] = []
    records: list[bytes] = []
    number = size_bytes = 0
    for line in lines:
        if line is not None:
            number += 1
            record = record_of(line, defaults) if line.strip() else b""
            if len(record) > bounds.MAX_RECORD_BYTES:
                refuse(number, f"larger than {bounds.MAX_RECORD_BYTES} bytes")
            elif record:
                records.append(record)
                numbers.append(number)
                size_bytes += len(record)
        is_full = len(records) >= max_records or size_bytes >= BATCH_BYTES
        if records and (line is None or is_full):
            yield numbers, b"\n".join(records)
            numbers, records, size_bytes = [], [], 0
    if records:
        yield numbers, b"\n".join(records)


def send(
    target: Target,
    lines: Iterable[bytes | None],
    defaults: Defaults,
    progress: Callable[[Sent], None] = lambda _: None,
    max_records: int = BATCH_RECORDS,
) -> Sent:
    """Send all lines; returns when the last one is acknowledged.

    Raises:
        AnswerError: the server refuses for good.
        UnavailableError: it cannot be reached for GIVE_UP_S.
    """
    sent = Sent()

    def refuse(number: int, reason: str) -> None:
        sent.rejected.append((number, reason))

    producer = uuid.UUID(bytes=ids.uuid7(int(time.time() * 1000), os.urandom(10)))
    with api.client(target) as http:
        made = batches(lines, defaults, refuse, max_records)
        for sequence, (numbers, body) in enumerate(made):
            answer = _post(http, target, f"p1.{producer}.0.{sequence}", body)
            sent.requests += 1
            sent.records += answer.accepted
            sent.receipt = answer.receipt or sent.receipt
            for one in answer.rejected:
                refuse(numbers[one.index], one.reason)
            progress(sent)
    sent.rejected.sort()
    return sent


class _Rejected(msgspec.Struct, frozen=True):
    index: int
    reason: str


class _Answer(msgspec.Struct, frozen=True):
    """What ingest answers; a 400 that names its records has no receipt."""

    rejected: list[_Rejected]
    accepted: int = 0
    receipt: str = ""


def _post(http: httpx2.Client, target: Target, key: str, body: bytes) -> _Answer:
    deadline_s = time.monotonic() + GIVE_UP_S
    wait_s = _FIRST_WAIT_S
    while True:
        try:
            return _post_once(http, target, key, body)
        except AnswerError as error:
            if not error.retry or time.monotonic() >= deadline_s:
                raise
            pause_s = error.retry_after_s or wait_s
        except httpx2.TransportError as cause:
            if time.monotonic() >= deadline_s:
                raise api.no_answer(target, cause) from cause
            pause_s = wait_s
        time.sleep(pause_s * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
        wait_s = min(_LONGEST_WAIT_S, wait_s * 2)


def _post_once(http: httpx2.Client, target: Target, key: str, body: bytes) -> _Answer:
    answer = http.post(
        target.ingest_url,
        content=body,
        headers={"content-type": "application/x-ndjson", "idempotency-key": key},
    )
    if answer.status_code == errors.BadRequestError.status:
        try:
            return msgspec.json.decode(answer.content, type=_Answer)  # the next batch may be good
        except msgspec.MsgspecError:
            pass  # refused as a whole
    api.check(answer)
    return api.decode(answer, _Answer)
