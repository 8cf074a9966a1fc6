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
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import httpx2
import msgspec

from logweir.client import api
from logweir.client.api import AnswerError, Target
from logweir.core import errors, ids

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
        fields = {"message": message, "metadata": fields}
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
    lines: Iterable[bytes], defaults: Defaults, max_records: int = BATCH_RECORDS
) -> Iterator[tuple[list[int], bytes]]:
    """Yield (line numbers from 1, NDJSON body); empty lines are passed over."""
    numbers: list[int] = []
    records: list[bytes] = []
    size_bytes = 0
    for number, line in enumerate(lines, 1):
        stripped = line.rstrip(b"\r\n")
        if not stripped.strip():
            continue
        records.append(record_of(stripped, defaults))
        numbers.append(number)
        size_bytes += len(records[-1])
        if len(records) >= max_records or size_bytes >= BATCH_BYTES:
            yield numbers, b"\n".join(records)
            numbers, records, size_bytes = [], [], 0
    if records:
        yield numbers, b"\n".join(records)


def send(
    target: Target,
    lines: Iterable[bytes],
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
    producer = uuid.UUID(bytes=ids.uuid7(int(time.time() * 1000), os.urandom(10)))
    with api.client(target) as http:
        for sequence, (numbers, body) in enumerate(batches(lines, defaults, max_records)):
            answer = _post(http, target, f"p1.{producer}.0.{sequence}", body)
            sent.requests += 1
            sent.records += answer["accepted"]
            sent.receipt = answer["receipt"] or sent.receipt
            for one in answer["rejected"]:
                sent.rejected.append((numbers[one["index"]], one["reason"]))
            progress(sent)
    return sent


def _post(http: httpx2.Client, target: Target, key: str, body: bytes) -> dict[str, Any]:
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


def _post_once(http: httpx2.Client, target: Target, key: str, body: bytes) -> dict[str, Any]:
    answer = http.post(
        target.ingest_url,
        content=body,
        headers={"content-type": "application/x-ndjson", "idempotency-key": key},
    )
    if answer.status_code == errors.BadRequestError.status:
        found = answer.json()
        if "rejected" in found:  # all of this batch; the next one may be good
            return {"accepted": 0, "receipt": "", "rejected": found["rejected"]}
    api.check(answer)
    found = answer.json()
    return {
        "accepted": found["accepted"],
        "receipt": found["receipt"],
        "rejected": found["rejected"],
    }
