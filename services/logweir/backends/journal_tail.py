"""The tails' side of one tenant's journal: what is appended, as it is appended.

    lw_append --PUBLISH, while a lease is held--> Subscription.next() -> Published
    stream --newest()--> entries that are not stored yet

The tail user can read the streams and renew leases, and change nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from redis import asyncio as redis
from redis.asyncio.client import PubSub

from logweir.backends import journal, redis_client
from logweir.backends.journal import Entry
from logweir.core import ids, names
from logweir.core.binding import JournalServer, Login
from logweir.core.names import PipelineId, TenantId

LEASE_S: Final = 30
"""How long appends are published after a tail was last seen."""

COMMAND_TIMEOUT_S: Final = 5.0
_PAGE_ENTRIES: Final = 8
"""Entries of one read; each may have 10 MiB."""

_RECEIPT_SKEW_MS: Final = (2_000, 60_000)
"""How far a block's own time and its entry's may be apart: looked for near first, then wider."""


class Published(msgspec.Struct, frozen=True):
    """A block as it was appended. `sequence` rises by one with each append of its pipeline."""

    pipeline: PipelineId
    sequence: int
    repeats: frozenset[int]
    payload: bytes


class Subscription:
    """Channels of some pipelines, over one connection that never reconnects in silence."""

    def __init__(self, pubsub: PubSub, tenant: TenantId) -> None:
        self._pubsub = pubsub
        self._tenant = tenant
        self._channels: dict[bytes, PipelineId] = {}
        self._early: list[dict[str, Any]] = []

    async def add(self, pipelines: Iterable[PipelineId]) -> None:
        """Subscribe to more pipelines; returns when the journal has confirmed it.

        Raises:
            UnavailableError: the journal did not answer.
        """
        channels = {
            (names.journal_pipeline(self._tenant, one) + "l").encode(): one for one in pipelines
        }
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
        sequence, named, payload = message["data"].split(b":", 2)
        return Published(
            pipeline=self._channels[message["channel"]],
            sequence=int(sequence),
            repeats=frozenset(int(part) for part in named.split(b",") if part),
            payload=payload,
        )

    async def close(self) -> None:
        """End the subscription."""
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            await self._pubsub.aclose()  # type: ignore[no-untyped-call]  # has no types


class TailReader:
    """One tenant's journal, as its tail user may see it."""

    def __init__(self, server: JournalServer, login: Login, tenant: TenantId) -> None:
        self._redis = redis_client.client(
            server, login, connections=4, command_timeout_s=COMMAND_TIMEOUT_S
        )
        self._channels: redis.Redis = redis_client.client(
            server, login, connections=1, command_timeout_s=None
        )
        self._tenant = tenant

    def _key(self, pipeline: PipelineId, suffix: str) -> str:
        return names.journal_pipeline(self._tenant, pipeline) + suffix

    def subscription(self) -> Subscription:
        """Return a subscription without channels; there may be one at a time."""
        pubsub = self._channels.pubsub()
        return Subscription(pubsub, self._tenant)

    async def renew(self, pipeline: PipelineId) -> None:
        """Ask for publishing for the next `LEASE_S` seconds.

        Raises:
            UnavailableError: the journal did not answer.
        """
        async with journal.door("renew the lease", COMMAND_TIMEOUT_S):
            await journal.answer_of(self._redis.set(self._key(pipeline, "t"), 1, ex=LEASE_S))

    async def newest(self, pipeline: PipelineId, max_entries: int, max_bytes: int) -> list[Entry]:
        """Return the newest entries that are not stored yet, the newest first.

        At least one, then as many as both bounds allow.

        Raises:
            UnavailableError: the journal did not answer.
        """
        found: list[Entry] = []
        size_bytes, before = 0, "+"
        while len(found) < max_entries and size_bytes < max_bytes:
            count = min(_PAGE_ENTRIES, max_entries - len(found))
            async with journal.door("answer", COMMAND_TIMEOUT_S):
                page = journal.entries_of(
                    await journal.command(
                        self._redis,
                        *("XREVRANGE", self._key(pipeline, "q"), before, "-", "COUNT", count),
                    )
                )
            found += page
            size_bytes += sum(len(one.payload) for one in page)
            if len(page) < count:
                break
            before = f"({page[-1].id}"
        return found

    async def holds(self, pipeline: PipelineId, receipt: ids.Receipt) -> bool:
        """Whether the journal holds a receipt's block.

        Raises:
            UnavailableError: the journal did not answer.
        """
        at_ms = ids.time_ms(receipt.block)
        for skew_ms in _RECEIPT_SKEW_MS:
            after = str(max(0, at_ms - skew_ms))
            while True:
                async with journal.door("answer", COMMAND_TIMEOUT_S):
                    page = journal.entries_of(
                        await journal.command(
                            self._redis,
                            *("XRANGE", self._key(pipeline, "q"), after, at_ms + skew_ms),
                            *("COUNT", _PAGE_ENTRIES),
                        )
                    )
                if any(one.uuid == receipt.block for one in page):
                    return True
                if len(page) < _PAGE_ENTRIES:
                    break
                after = f"({page[-1].id}"
        return False

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()
        await self._channels.aclose()
