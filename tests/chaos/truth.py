"""What is there after the drain: by SQL from the segments, by the query API, and the books."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2
import msgspec
import psycopg
from chaos import history
from chaos.checker import Books, Name, Outcome, Stored, Truth
from chaos.standing import Up
from redis import asyncio as redis
from redis import exceptions

from logweir.core import block, columns, names, record, segment
from logweir.core.columns import Columns

PAGE = 5000
PAST_NS = 3 * 86_400 * 10**9


class _Metadata(msgspec.Struct):
    p: int
    seq: int


class _Extra(msgspec.Struct):
    timestamp: int


_metadata = msgspec.json.Decoder(_Metadata)


class _Line(msgspec.Struct):
    attributes: _Metadata


class _View(msgspec.Struct):
    id: str
    timestamp: str
    labels: dict[str, str]
    message: str
    trace_id: str
    span_id: str
    attributes: msgspec.Raw


class _Page(msgspec.Struct):
    records: list[_View]
    cursor: str | None


async def read(up: Up, receipts: Sequence[str]) -> Truth:
    """Read everything; `receipts` are those to ask the API for."""
    journal = up.journal()
    try:
        stuck = await _stuck(journal, up.prefix())
        counts = await _counts(journal, up)
    finally:
        await journal.aclose()
    with psycopg.connect(up.superuser(), autocommit=True) as connection, connection.transaction():
        connection.execute("set transaction isolation level repeatable read read only")
        segments = _segments(connection)
        ledger = _ledger(connection)
        quarantined = list(_quarantined(connection))
        usage = _usage(connection)
    with httpx2.Client(trust_env=False, timeout=120) as client:
        queried = list(_queried(client, up))
        words = _receipts(client, up, receipts)
    return Truth(
        stored=[one for found in segments for one in _stored(segment.decode(found))],
        queried=queried,
        quarantined=quarantined,
        stuck=stuck,
        outcomes=ledger,
        receipts=words,
        books=Books(
            **counts,
            usage=usage,
            ledger=total(ledger.values()),
            segments=sum(one.n for one in segments),
        ),
    )


# ---- the journal ------------------------------------------------------------------------------


async def drained(up: Up, wait_s: float) -> bool:
    """Wait until the journal is empty and nothing is pending; false when that takes too long."""
    journal, deadline_s = up.journal(), time.monotonic() + wait_s
    try:
        while time.monotonic() < deadline_s:
            try:
                counts = await _counts(journal, up)
            except (exceptions.RedisError, OSError):
                counts = {"entries": 1, "pending": 0}
            if not counts["entries"] and not counts["pending"]:
                return True
            await asyncio.sleep(0.1)
    finally:
        await journal.aclose()
    return False


async def _counts(journal: redis.Redis, up: Up) -> dict[str, int]:
    prefix = up.prefix()
    pending = await journal.xpending(f"{prefix}q", names.CONSUMER_GROUP)
    values = await journal.hmget(f"{prefix}c", ["accepted", "inflight", "bytes"])
    accepted, in_flight, buffered = (int(value or 0) for value in values)
    tenant = await journal.hget(f"{names.journal_tenant(up.tenant().tenant)}c", "bytes")
    return {
        "accepted": accepted,
        "in_flight": in_flight,
        "buffered_bytes": buffered,
        "tenant_bytes": int(tenant or 0),
        "entries": int(await journal.xlen(f"{prefix}q")),
        "pending": int(pending["pending"]),
    }


async def _stuck(journal: redis.Redis, prefix: str) -> list[Name]:
    entries = await journal.xrange(f"{prefix}q")
    payloads = [fields[b"b"] for _, fields in entries]
    return [name for payload in payloads for name in _names_of(block.decode(payload)[1])]


# ---- the store --------------------------------------------------------------------------------


def _segments(connection: psycopg.Connection[Any]) -> list[segment.Segment]:
    wanted = ", ".join(segment.Segment.__struct_fields__)
    rows = connection.execute(f"select {wanted} from segments", binary=True).fetchall()
    return [segment.Segment(*row) for row in rows]


def _stored(found: Columns) -> Iterator[Stored]:
    texts = {name: columns.split(getattr(found, name), found.n) for name in columns.TEXTS}
    labels = [dict(one) for one in found.label_sets]
    for row in range(found.n):
        time_ns, attributes = int(found.time_ns[row]), texts["attributes"][row]
        who = _metadata.decode(attributes)
        content = (
            labels[int(found.label_set[row])],
            texts["message"][row].decode(),
            texts["trace"][row].decode(),
            texts["span"][row].decode(),
            attributes,
        )
        sent = ""
        if found.flags[row] & record.FLAG_FUTURE:
            original = msgspec.json.decode(texts["extra"][row], type=_Extra)
            sent = history.digest(original.timestamp, *content)
        yield Stored(
            who.p,
            who.seq,
            str(record.RecordId(time_ns, int(found.block[row]), int(found.index[row]))),
            history.digest(time_ns, *content),
            sent,
        )


def _names_of(found: Columns) -> list[Name]:
    decoded = map(_metadata.decode, columns.split(found.attributes, found.n) if found.n else [])
    return [(one.p, one.seq) for one in decoded]


def _ledger(connection: psycopg.Connection[Any]) -> dict[str, Outcome]:
    """Outcomes of all requests by their receipts."""
    rows = connection.execute("select key, outcomes from ledger where kind = 'b'").fetchall()
    return {
        f"{key}.{place // 4}": Outcome(*outcomes[place : place + 4])
        for key, outcomes in rows
        for place in range(0, len(outcomes), 4)
    }


def _quarantined(connection: psycopg.Connection[Any]) -> Iterator[Name]:
    rows = connection.execute("select request_index, payload from quarantine").fetchall()
    for index, payload in rows:
        if index < 0:
            yield from _names_of(block.decode(payload)[1])
            continue
        for line in payload.splitlines():
            who = msgspec.json.decode(line, type=_Line).attributes
            yield who.p, who.seq


_SUMS = ", ".join(f"coalesce(sum({word}), 0)::int8" for word in Outcome.__struct_fields__)
USAGE = f"select {_SUMS} from usage"
"""The sums of the books, in the order of an Outcome."""


def _usage(connection: psycopg.Connection[Any]) -> Outcome:
    row = connection.execute(USAGE).fetchone()
    return Outcome(*row) if row else Outcome()


def total(outcomes: Any) -> Outcome:
    found = list(outcomes)
    return Outcome(
        *(sum(getattr(one, name) for one in found) for name in Outcome.__struct_fields__)
    )


# ---- the query API ----------------------------------------------------------------------------


def _queried(client: httpx2.Client, up: Up) -> Iterator[tuple[str, str]]:
    """Page through all records, as a user would."""
    shown, now_ns = up.shown(), time.time_ns()
    wanted = {"start": str(now_ns - PAST_NS), "end": str(now_ns + PAST_NS), "limit": str(PAGE)}
    wanted["direction"] = "forward"
    headers = {"Authorization": f"Bearer {up.place.query_key}"}
    while True:
        answer = client.get(f"{shown.url}/api/v1/query", params=wanted, headers=headers)
        assert answer.status_code == 200, answer.text[:500]
        page = msgspec.json.decode(answer.content, type=_Page)
        for one in page.records:
            labels = {name: value for name, value in one.labels.items() if name != "pipeline"}
            yield (
                one.id,
                history.digest(
                    int(one.timestamp),
                    labels,
                    one.message,
                    one.trace_id,
                    one.span_id,
                    bytes(one.attributes),
                ),
            )
        if page.cursor is None:
            return
        wanted["cursor"] = page.cursor


def _receipts(client: httpx2.Client, up: Up, receipts: Sequence[str]) -> dict[str, str]:
    shown, found = up.shown(), {}
    headers = {"Authorization": f"Bearer {up.place.query_key}"}
    for receipt in receipts:
        answer = client.get(f"{shown.url}/api/v1/receipts/{receipt}", headers=headers)
        found[receipt] = (
            msgspec.json.decode(answer.content)["state"]
            if answer.status_code == 200
            else f"status {answer.status_code}"
        )
    return found


def sample(found: history.History, seed: int, count: int) -> list[str]:
    """Return receipts of some acknowledged requests that have records to store."""
    all_of_them = [
        one.acks[0].receipt
        for one in found.requests.values()
        if one.acks and one.intent.good and not one.intent.reuses
    ]
    return random.Random(seed).sample(all_of_them, min(count, len(all_of_them)))
