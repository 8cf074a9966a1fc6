"""The tails' side of one tenant's journal: what is appended, as it is appended.

    lw_append --PUBLISH, while a lease is held--> Subscription.next() -> Published
    stream --between(), before()--> entries that are not stored yet

The tail user can read the streams and renew leases, and change nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Iterable
from typing import Any, Final

import msgspec
from redis import asyncio as redis

from logweir.backends import journal, redis_client
from logweir.backends.journal import Entry
from logweir.core import errors, ids, names
from logweir.core.binding import JournalServer, Login
from logweir.core.names import PipelineId, TenantId

LEASE_S: Final = 30
"""How long appends are published after a tail was last seen."""

COMMAND_TIMEOUT_S: Final = 5.0
PAGE_ENTRIES: Final = 8
"""Entries of one read; each may have 10 MiB."""

_RECEIPT_WINDOWS_MS: Final = ((-2_000, 10_000), (-60_000, -2_001), (10_001, 60_000))
"""How far an entry's time may be from its block's own, the likely distances first."""

RECEIPT_BYTES: Final = 64 << 20
"""How much of a journal is read for one receipt: entries cannot be read without their blocks."""


class Published(msgspec.Struct, frozen=True):
    """A block as it was appended. `sequence` rises by one with each append of its pipeline."""

    pipeline: PipelineId
    sequence: int
    repeats: frozenset[int]
    payload: bytes


class Subscription:
    """Channels of some pipelines, over one connection that never reconnects in silence."""

    def __init__(self, client: redis.Redis, tenant: TenantId) -> None:
        self._client = client
        self._pubsub = client.pubsub()
        self._tenant = tenant
        self._channels: dict[bytes, PipelineId] = {}
        self._early: list[dict[str, Any]] = []

    @property
    def pipelines(self) -> Collection[PipelineId]:
        """Those that are subscribed to."""
        return self._channels.values()

    def _channels_of(self, pipelines: Iterable[PipelineId]) -> dict[bytes, PipelineId]:
        return {
            (names.journal_pipeline(self._tenant, one) + "l").encode(): one for one in pipelines
        }

    async def add(self, pipelines: Iterable[PipelineId]) -> None:
        """Subscribe to more pipelines; returns when the journal has confirmed it.

        Raises:
            UnavailableError: the journal did not answer.
        """
        channels = self._channels_of(pipelines)
        self._channels |= channels
        async with journal.door("subscribe", COMMAND_TIMEOUT_S):
            await journal.answer_of(self._pubsub.subscribe(*channels))
            confirmed = 0
            while confirmed < len(channels):
                message = await self._pubsub.get_message(timeout=COMMAND_TIMEOUT_S)
                if message is not None and message["type"] == "subscribe":
                    confirmed += 1
                elif message is not None:
                    self._early.append(message)

    async def remove(self, pipelines: Iterable[PipelineId]) -> None:
        """Hear nothing more of these pipelines.

        Raises:
            UnavailableError: the journal did not answer.
        """
        channels = self._channels_of(pipelines)
        for channel in channels:
            self._channels.pop(channel, None)
        async with journal.door("unsubscribe", COMMAND_TIMEOUT_S):
            await journal.answer_of(self._pubsub.unsubscribe(*channels))

    async def next(self, wait_s: float) -> Published | None:
        """Return the next block; None when none came in `wait_s`.

        Raises:
            UnavailableError: the connection is gone, and what was published meanwhile with it.
        """
        if self._early:
            message: dict[str, Any] | None = self._early.pop(0)
        else:
            async with journal.door("publish blocks", wait_s + COMMAND_TIMEOUT_S):
                message = await self._pubsub.get_message(timeout=wait_s)
        if message is None or message["type"] != "message":
            return None
        pipeline = self._channels.get(message["channel"])
        return None if pipeline is None else _published(pipeline, message["data"])

    async def close(self) -> None:
        """End the subscription and its connection, in whatever state they are."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                await self._pubsub.aclose()  # type: ignore[no-untyped-call]  # has no types
        with contextlib.suppress(Exception):
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                await self._client.aclose()


def _published(pipeline: PipelineId, data: bytes) -> Published | None:
    """Take a message apart; None when it is not one of lw_append's."""
    try:
        sequence, named, payload = data.split(b":", 2)
        return Published(
            pipeline=pipeline,
            sequence=int(sequence),
            repeats=frozenset(int(part) for part in named.split(b",") if part),
            payload=payload,
        )
    except ValueError:
        return None  # the tenant's own ingest login can publish anything; numbers show the gap


class TailReader:
    """One tenant's journal, as its tail user may see it."""

    def __init__(self, server: JournalServer, login: Login, tenant: TenantId) -> None:
        self._server, self._login, self._tenant = server, login, tenant
        self._redis = redis_client.client(
            server, login, connections=4, command_timeout_s=COMMAND_TIMEOUT_S
        )
        self._is_closed = False

    @contextlib.asynccontextmanager
    async def _door(self, what: str) -> AsyncIterator[None]:
        if self._is_closed:  # a command would connect again
            raise errors.UnavailableError("The reader's login was changed meanwhile.")
        async with journal.door(what, COMMAND_TIMEOUT_S):
            yield

    def _key(self, pipeline: PipelineId, suffix: str) -> str:
        return names.journal_pipeline(self._tenant, pipeline) + suffix

    def subscription(self) -> Subscription:
        """Return a subscription without channels, which has a connection of its own."""
        client = redis_client.client(
            self._server, self._login, connections=1, command_timeout_s=None
        )
        return Subscription(client, self._tenant)

    async def renew(self, pipeline: PipelineId) -> int:
        """Ask for publishing for the next `LEASE_S` seconds.

        Returns:
            The number of the newest append; all with a higher number are published.

        Raises:
            UnavailableError: the journal did not answer.
        """
        async with (
            self._door("renew the lease"),
            self._redis.pipeline(transaction=False) as pipe,
        ):
            pipe.set(self._key(pipeline, "t"), 1, ex=LEASE_S)
            pipe.hmget(self._key(pipeline, "c"), ["seq"])
            _, (sequence,) = await pipe.execute()
        return int(sequence or 0)

    async def before(self, pipeline: PipelineId, entry_id: str = "") -> list[Entry]:
        """Return some of the entries before an id (empty: the newest), the newest first.

        Raises:
            UnavailableError: the journal did not answer.
        """
        end = f"({entry_id}" if entry_id else "+"
        return await self._entries("XREVRANGE", pipeline, end, "-", PAGE_ENTRIES)

    async def between(self, pipeline: PipelineId, first: str, last: str) -> list[Entry]:
        """Return some of the entries from `first` (with a "(" before it: behind it) to `last`.

        Raises:
            UnavailableError: the journal did not answer.
        """
        return await self._entries("XRANGE", pipeline, first, last, PAGE_ENTRIES)

    async def newest(self, pipeline: PipelineId) -> Entry | None:
        """Return the newest entry.

        Raises:
            UnavailableError: the journal did not answer.
        """
        found = await self._entries("XREVRANGE", pipeline, "+", "-", 1)
        return found[0] if found else None

    async def _entries(
        self, command: str, pipeline: PipelineId, start: str, end: str, count: int
    ) -> list[Entry]:
        async with self._door("answer"):
            return journal.entries_of(
                await journal.command(
                    self._redis, command, self._key(pipeline, "q"), start, end, "COUNT", count
                )
            )

    async def holds(self, pipeline: PipelineId, receipt: ids.Receipt) -> bool:
        """Whether the journal holds a receipt's block.

        Raises:
            UnavailableError: the journal did not answer, or holds too much of that time.
        """
        at_ms = ids.time_ms(receipt.block)
        read_bytes = 0
        for low_ms, high_ms in _RECEIPT_WINDOWS_MS:
            first, last = str(max(0, at_ms + low_ms)), str(max(0, at_ms + high_ms))
            while page := await self.between(pipeline, first, last):
                if any(one.uuid == receipt.block for one in page):
                    return True
                read_bytes += sum(len(one.payload) for one in page)
                if read_bytes > RECEIPT_BYTES:
                    raise errors.UnavailableError(
                        "The journal holds too many blocks of that time to look through them.",
                        retry_after_s=5.0,
                        hint="Ask again when the collectors have caught up.",
                    )
                first = f"({page[-1].id}"
        return False

    async def close(self) -> None:
        """Close all connections but those of subscriptions; nothing can be asked any more."""
        self._is_closed = True
        await self._redis.aclose()
