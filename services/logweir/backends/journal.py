"""The journal: one Redis stream a pipeline, appended by ingest, drained by collectors.

    ingest -> Appender.append -> lw_append -> stream -> Reader.read -> Reader.ack -> lw_ack

What the functions decide stands in `journal.lua`; here their answers become values and errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import math
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any, cast

import msgspec
from redis import asyncio as redis
from redis import exceptions

from logweir.backends import doors, failpoint, redis_client
from logweir.core import bounds, errors, ids, names
from logweir.core.binding import JournalServer, Login
from logweir.core.names import PipelineId, TenantId

LIBRARY_VERSION = "logweir-3"
"""What lw_version answers when the right library is loaded."""

ACK_BATCH = 2000
"""Ids in one lw_ack; Lua's unpack takes some 7,900."""

FULL_SURE_S = 0.05
"""A collector may empty a full buffer at any moment; longer, and it would stand empty meanwhile."""

APPEND_TIMEOUT_S = 5.0
REVOKED_TIMEOUT_S = 2.0
"""With the time between two questions, within the 5 s in which a revoked key is refused."""

REVOKED = "r:"
ENDS = "e:"
"""Of a tenant's hash `cfg`: begin of the fields that name a revoked key, and one that ends."""

TOLD = "told"
"""The field that changes whenever somebody who knows all of them has told them."""

_CLOSED = "the handler is closed"
"""uvloop's words, in a RuntimeError, for writing to a connection that was reset just now."""


def library() -> str:
    """Return the source of the function library."""
    return importlib.resources.files("logweir.backends").joinpath("journal.lua").read_text("utf-8")


class KeyedRequest(msgspec.Struct, frozen=True):
    """A request of a block that has a key: `index` in the block, 16 bytes of key, fingerprint."""

    index: int
    key: bytes
    fingerprint: int


class Appended(msgspec.Struct, frozen=True):
    """The block is in the journal; `repeats` maps request indexes to what they repeat."""

    repeats: Mapping[int, ids.Receipt]


class AllRepeated(msgspec.Struct, frozen=True):
    """Every request of the block was accepted before; nothing went in."""

    repeats: Mapping[int, ids.Receipt]


class Conflicts(msgspec.Struct, frozen=True):
    """These requests use the key of another body; nothing went in."""

    indexes: frozenset[int]


class Entry(msgspec.Struct, frozen=True):
    """One stream entry: a block, and which of its requests the append knew as repeats."""

    id: str
    uuid: bytes
    accepted: int
    repeats: frozenset[int]
    payload: bytes


class Revocations(msgspec.Struct, frozen=True):
    """Ids of keys that are revoked, and when others end, in seconds since the epoch.

    `told` is another one each time that somebody has told them.
    """

    revoked: frozenset[int] = frozenset()
    ends: Mapping[int, int] = {}
    told: bytes = b""


class Counters(msgspec.Struct, frozen=True):
    """A pipeline's counters: bytes and records in the journal, records ever accepted."""

    bytes: int = 0
    accepted: int = 0
    inflight: int = 0


def time_ms(entry_id: str) -> int:
    """Return the milliseconds in a stream entry's id, by the clock of the journal's server."""
    return int(entry_id.partition("-")[0])


class UnreachableError(errors.UnavailableError):
    """The journal did not answer. Why is for logs (`str`): it names servers and users."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"The journal did not {what}.", hint="Send the request again.")
        self.reason = reason.rstrip(".")

    def __str__(self) -> str:
        return f"{self.message.removesuffix('.')}: {self.reason}."


@contextlib.asynccontextmanager
async def door(what: str, timeout_s: float) -> AsyncIterator[None]:
    """Turn what Redis or the network raise into UnreachableError."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except (exceptions.RedisError, OSError, TimeoutError) as cause:
        raise UnreachableError(what, doors.reason_of(cause)) from cause
    except RuntimeError as cause:
        if _CLOSED not in str(cause):
            raise
        raise UnreachableError(what, "the connection was closed") from cause


class Appender:
    """The ingest side of one tenant's journal."""

    def __init__(
        self, server: JournalServer, login: Login, tenant: TenantId, *, connections: int = 16
    ) -> None:
        self._redis = redis_client.client(
            server, login, connections=connections, command_timeout_s=APPEND_TIMEOUT_S
        )
        self._replicas = server.replicas
        self._tenant = tenant

    async def append(
        self,
        pipeline: PipelineId,
        uuid: bytes,
        payload: bytes,
        *,
        accepted: int,
        size_bytes: int,
        requests: int,
        keyed: Sequence[KeyedRequest],
    ) -> Appended | AllRepeated | Conflicts:
        """Put a block into the journal; when this returns, it is fsynced.

        Args:
            pipeline: whose stream.
            uuid: the block's UUIDv7.
            payload: the encoded block.
            accepted: records that it accounts for.
            size_bytes: decoded bytes, charged to the tenant's rate.
            requests: how many requests are in the block.
            keyed: those that have a key.

        Raises:
            OverLimitError: the tenant's buffer is full, its rate in debt, or too much is stored.
            TooLargeError: the block is larger than the tenant's buffer.
            ForbiddenError: the tenant or the pipeline is read-only or being deleted.
            UnavailableError: the journal did not answer, or is not set up; send again.
        """
        stream = names.journal_pipeline(self._tenant, pipeline) + "q"
        arguments: list[bytes | str | int] = [uuid, accepted, size_bytes, payload, requests]
        for request in keyed:
            arguments += [request.key, request.fingerprint.to_bytes(8, "big"), request.index]
        async with door("take the block", APPEND_TIMEOUT_S + 1):
            failpoint.reach("ingest.before_append")
            answer = await self._append(stream, arguments)
            failpoint.reach("ingest.after_append")
        return _appended(answer)

    async def _append(self, stream: str, arguments: list[bytes | str | int]) -> list[Any]:
        if not self._replicas:
            return cast(
                "list[Any]", await answer_of(self._redis.fcall("lw_append", 1, stream, *arguments))
            )
        # WAIT covers what this connection wrote, so both commands must use the same one.
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.execute_command("FCALL", "lw_append", 1, stream, *arguments)
            pipe.execute_command("WAIT", self._replicas, 500)
            answer, replicas = await pipe.execute()
        if answer[0] in (b"OK", b"DUP") and replicas < self._replicas:
            raise errors.UnavailableError(
                f"{replicas} of {self._replicas} replicas of the journal confirmed the block.",
                hint="Send the request again with the same Idempotency-Key.",
            )
        return cast("list[Any]", answer)

    async def revocations(self) -> Revocations:
        """Return which of the tenant's keys are revoked, or will be.

        Raises:
            UnavailableError: the journal did not answer.
        """
        key = names.journal_tenant(self._tenant) + "cfg"
        async with door("say which keys are revoked", REVOKED_TIMEOUT_S):
            fields = await answer_of(self._redis.hgetall(key))
        try:
            return _revocations(fields)
        except ValueError as cause:
            raise UnreachableError("list the revoked keys", str(cause)) from cause

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()


def _revocations(fields: Mapping[bytes, bytes]) -> Revocations:
    revoked, ends = set(), {}
    for name, value in fields.items():
        kind, colon, key_id = name.decode("ascii", "replace").partition(":")
        if kind + colon == REVOKED:
            revoked.add(int(key_id))
        elif kind + colon == ENDS:
            ends[int(key_id)] = int(value)
    return Revocations(frozenset(revoked), ends, fields.get(TOLD.encode(), b""))


def _appended(answer: list[Any]) -> Appended | AllRepeated | Conflicts:
    kind = answer[0]
    if kind == b"OK":
        return Appended(_markers(answer[3:]))
    if kind == b"DUP":
        return AllRepeated(_markers(answer[1:]))
    if kind == b"CONFLICT":
        return Conflicts(frozenset(int(index) for index in answer[1:]))
    if kind == b"LARGE":
        raise errors.TooLargeError(
            f"The request is larger than the buffer of this tenant, {int(answer[1])} bytes.",
            hint="Send several requests; quotas.bufferBytes is the buffer.",
        )
    if kind == b"FULL":
        raise errors.OverLimitError(
            "The buffer of this tenant is full: records arrive faster than they are stored.",
            retry_after_s=2.0,
            sure_s=FULL_SURE_S,
            hint="Send again later; a larger quotas.bufferBytes or more collectors help.",
        )
    if kind == b"RATE":
        wait_s = int(answer[1]) / 1e6
        raise errors.OverLimitError(
            f"This tenant is over its rate for another {math.ceil(wait_s)} s.",
            retry_after_s=wait_s,
            hint="Send again then; the rate is quotas.recordsPerSecond and bytesPerSecond.",
        )
    if kind == b"STORED":
        raise errors.OverLimitError(
            "This tenant has stored as much as it may.",
            retry_after_s=bounds.STORED_LOOK_S + bounds.STORED_READ_S,
            hint="It is looked at again by then; a larger quotas.storedBytes helps at once,"
            " a shorter retention as soon as records go.",
        )
    if kind == b"STATE" and answer[1] != b"provisioning":
        raise errors.ForbiddenError(f"Ingest of this tenant is closed: {answer[1].decode()}.")
    raise errors.UnavailableError(
        f"The journal of this pipeline is not set up ({answer[-1].decode()}).",
        hint="The operator sets it up; send again.",
    )


def _markers(flat: Sequence[Any]) -> dict[int, ids.Receipt]:
    found = {}
    for index, marker in zip(flat[::2], flat[1::2], strict=True):
        found[int(index)] = ids.Receipt(bytes(marker[8:24]), int(marker[24:]))
    return found


class Reader:
    """The collectors' side of one tenant's journal."""

    def __init__(
        self, server: JournalServer, login: Login, tenant: TenantId, consumer: str
    ) -> None:
        self._blocking = redis_client.client(server, login, connections=1, command_timeout_s=None)
        self._redis = redis_client.client(server, login, connections=2)
        self._tenant = tenant
        self._consumer = consumer
        self._claim_from: dict[PipelineId, bytes] = {}

    def _stream(self, pipeline: PipelineId) -> str:
        return names.journal_pipeline(self._tenant, pipeline) + "q"

    async def read(
        self, pipelines: Sequence[PipelineId], count: int, block_s: float
    ) -> dict[PipelineId, list[Entry]]:
        """Return new entries, at most `count` a pipeline; empty when none came in `block_s`.

        Raises:
            UnavailableError: the journal did not answer.
        """
        streams = {self._stream(pipeline): pipeline for pipeline in pipelines}
        async with door("hand out blocks", block_s + 5):
            answer = await answer_of(
                command(
                    self._blocking,
                    "XREADGROUP",
                    "GROUP",
                    names.CONSUMER_GROUP,
                    self._consumer,
                    "COUNT",
                    count,
                    "BLOCK",
                    max(1, round(block_s * 1000)),
                    "STREAMS",
                    *streams,
                    *[">"] * len(streams),
                )
            )
            if answer:
                failpoint.reach("collector.after_read")
        return {streams[stream.decode()]: entries_of(entries) for stream, entries in _pairs(answer)}

    async def own_pending(self, pipeline: PipelineId, after: str, count: int) -> list[Entry]:
        """Return what was handed to this consumer before and not acknowledged, after an id.

        Raises:
            UnavailableError: the journal did not answer.
        """
        async with door("hand out blocks", 10):
            answer = await answer_of(
                command(
                    self._redis,
                    "XREADGROUP",
                    "GROUP",
                    names.CONSUMER_GROUP,
                    self._consumer,
                    "COUNT",
                    count,
                    "STREAMS",
                    self._stream(pipeline),
                    after,
                )
            )
        return [entry for _, entries in _pairs(answer) for entry in entries_of(entries)]

    async def claim(self, pipeline: PipelineId, idle_s: float, count: int) -> list[Entry]:
        """Take over entries that another consumer holds for longer than `idle_s`.

        One call looks at a part of what is pending and the next goes on behind it, so that many
        entries that nobody can take hide none that is left.

        Raises:
            UnavailableError: the journal did not answer.
        """
        async with door("hand over blocks", 10):
            answer = await answer_of(
                command(
                    self._redis,
                    "XAUTOCLAIM",
                    self._stream(pipeline),
                    names.CONSUMER_GROUP,
                    self._consumer,
                    round(idle_s * 1000),
                    self._claim_from.get(pipeline, b"0-0"),
                    "COUNT",
                    count,
                )
            )
            if answer[1]:
                failpoint.reach("collector.after_claim")
        self._claim_from[pipeline] = answer[0]
        return entries_of(answer[1])

    async def ack(self, pipeline: PipelineId, entries: Sequence[Entry]) -> None:
        """Delete entries whose records are committed; call it after the COMMIT was answered.

        Raises:
            UnavailableError: the journal did not answer; the entries will be delivered again.
        """
        for start in range(0, len(entries), ACK_BATCH):
            some = entries[start : start + ACK_BATCH]
            async with door("delete stored blocks", 10):
                failpoint.reach("collector.after_commit")
                await answer_of(
                    self._redis.fcall(
                        "lw_ack",
                        1,
                        self._stream(pipeline),
                        names.CONSUMER_GROUP,
                        len(some),
                        *[entry.id for entry in some],
                        *[len(entry.payload) for entry in some],
                        *[entry.accepted for entry in some],
                    )
                )
                failpoint.reach("collector.after_ack")

    async def oldest_pending_ms(self, pipeline: PipelineId) -> int | None:
        """Return the arrival (ms since the epoch) of the oldest entry that was handed out and not
        acknowledged; None when there is none.

        Raises:
            UnavailableError: the journal did not answer.
        """
        async with door("answer", 5):
            answer = await command(
                self._redis, "XPENDING", self._stream(pipeline), names.CONSUMER_GROUP
            )
        oldest = answer["min"] if isinstance(answer, dict) else answer[1]
        return time_ms(oldest.decode()) if oldest else None

    async def backlog(self, pipeline: PipelineId) -> int:
        """Return how many entries are not acknowledged yet.

        Raises:
            UnavailableError: the journal did not answer.
        """
        async with door("answer", 5):
            return int(await answer_of(self._redis.xlen(self._stream(pipeline))))

    async def close(self) -> None:
        """Close all connections."""
        await self._blocking.aclose()
        await self._redis.aclose()


def _pairs(answer: Any) -> list[tuple[bytes, Any]]:  # noqa: ANN401 - a raw reply of Redis
    """The streams of a read: a list of pairs in RESP2, a map in RESP3."""
    if not answer:
        return []
    return list(answer.items()) if isinstance(answer, dict) else [(s, e) for s, e in answer]


def entries_of(raw: Any) -> list[Entry]:  # noqa: ANN401 - a raw reply of Redis
    """Return the entries of a reply, in its order."""
    return [_entry(entry_id, fields) for entry_id, fields in raw or []]


def _entry(entry_id: bytes, fields: Any) -> Entry:  # noqa: ANN401 - a raw reply of Redis
    """An entry; one without fields was deleted while it was pending, and is only acknowledged."""
    if isinstance(fields, list | tuple):
        fields = dict(zip(fields[::2], fields[1::2], strict=True))
    fields = fields or {}
    return Entry(
        id=entry_id.decode(),
        uuid=fields.get(b"u", b""),
        accepted=_number(fields.get(b"n", b"0")),
        repeats=frozenset(_number(part) for part in fields.get(b"r", b"").split(b",") if part),
        payload=fields.get(b"b", b""),
    )


def _number(text: bytes) -> int:
    """A number of an entry; -1 for what is none, as only a damaged entry has it."""
    return int(text) if text.isdigit() and len(text) < 20 else -1


async def counters(client: redis.Redis, tenant: TenantId, pipeline: PipelineId) -> Counters:
    """Return the counters of a pipeline.

    Raises:
        UnavailableError: the journal did not answer.
    """
    key = names.journal_pipeline(tenant, pipeline) + "c"
    async with door("answer", 5):
        values = await answer_of(client.hmget(key, ["bytes", "accepted", "inflight"]))
    return Counters(*(int(value or 0) for value in values))


async def command(client: redis.Redis, *words: str | bytes | int) -> Any:  # noqa: ANN401 - a raw reply
    """Run a command that redis-py has no typed method for; its errors come through as they are."""
    return await client.execute_command(*words)  # type: ignore[no-untyped-call]  # has no types


async def answer_of(pending: Awaitable[Any] | Any) -> Any:  # noqa: ANN401 - redis-py's own types
    """Await what redis-py types as "awaitable or value"."""
    return await pending
