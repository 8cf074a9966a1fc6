"""Clients of the live tail, and producers of numbered records to tell what they missed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import urlencode

import websockets
import world
from builders import encode, record, request
from serving import Role, until
from websockets.asyncio.client import ClientConnection, connect

from logweir.backends import journal
from logweir.core import block, names
from logweir.core.names import PipelineId


def address(role: Role, **asked: Any) -> str:
    return f"{role.url.replace('http', 'ws')}/api/v1/tail?{urlencode(asked)}"


def opened(role: Role, key: str, *, max_size: int | None = None, **asked: Any) -> connect:
    """A WebSocket of a tail, as an asynchronous context manager."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return connect(
        address(role, **asked), additional_headers=headers, max_size=max_size, compression=None
    )


@contextlib.asynccontextmanager
async def opened_slow(role: Role, key: str) -> AsyncIterator[ClientConnection]:
    """A WebSocket of a tail for which hardly anything waits on the client's side."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    plain.connect(("127.0.0.1", int(role.url.rsplit(":", 1)[1])))
    async with connect(
        address(role),
        sock=plain,
        max_queue=1,
        close_timeout=0.2,
        additional_headers={"authorization": f"Bearer {key}"},
        compression=None,
    ) as found:
        yield found


async def refusal(role: Role, key: str, **asked: Any) -> websockets.http11.Response:
    """The answer to a handshake that is refused."""
    try:
        async with opened(role, key, **asked):
            raise AssertionError("the tail was not refused")
    except websockets.InvalidStatus as refused:
        return refused.response


class Watcher:
    """What one client saw so far: messages of the history, live ones, and gaps."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.history: list[str] = []
        self.live: list[str] = []
        self.gap_records = 0
        self.is_live = False
        self.problem: dict[str, Any] = {}

    async def read(self) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            async for text in self.socket:
                self.take(json.loads(text))

    def take(self, frame: dict[str, Any]) -> None:
        if "live" in frame:
            self.is_live = True
        elif "gap" in frame:
            self.gap_records += frame["gap"]["records"]
        elif "error" in frame:
            self.problem = frame["error"]
        else:
            seen = self.live if self.is_live else self.history
            seen += [one["message"] for one in frame["records"]]

    @property
    def everything(self) -> list[str]:
        return self.history + self.live

    async def until_live(self) -> None:
        await until(self._is_live)

    async def _is_live(self) -> bool:
        return self.is_live

    async def until_seen(self, message: str) -> None:
        async def is_seen() -> bool:
            assert not self.problem, self.problem
            return message in self.live or message in self.history

        await until(is_seen)

    async def until_closed(self) -> int:
        """Wait until the server closes the socket; return the code."""
        async with asyncio.timeout(20):
            await self.socket.wait_closed()
        return self.socket.close_code or 0


@contextlib.asynccontextmanager
async def watching(role: Role, key: str, **asked: Any) -> AsyncIterator[Watcher]:
    """A tail that is read all the time."""
    async with opened(role, key, **asked) as socket:
        watcher = Watcher(socket)
        task = asyncio.create_task(watcher.read())
        try:
            yield watcher
        finally:
            await socket.close()
            await task


async def append(
    tenant: world.Tenant,
    messages: Sequence[str],
    pipeline: PipelineId | None = None,
    **fields: Any,
) -> bytes:
    """Append one block of these messages; return its id."""
    own = pipeline or tenant.pipeline
    uuid = world.new_uuid()
    payload = encode(
        tenant.id, own, [request([record(text, **fields) for text in messages])], uuid=uuid
    )
    await append_payload(tenant.appender(), own, payload)
    return uuid


async def append_payload(
    appender: journal.Appender,
    pipeline: PipelineId,
    payload: bytes,
    keyed: Sequence[journal.KeyedRequest] = (),
) -> Any:
    header = block.header(payload)
    return await appender.append(
        pipeline,
        header.uuid,
        payload,
        accepted=header.accepted,
        size_bytes=header.size_bytes,
        requests=len(header.requests),
        keyed=keyed,
    )


class Producer:
    """Appends numbered records, one block after the other, as one sender does."""

    def __init__(self, tenant: world.Tenant, seed: int = 0, name: str = "p") -> None:
        self.sent = 0
        self._tenant = tenant
        self._rng = random.Random(seed)
        self._name = name
        self._appender = tenant.appender()

    def message(self, number: int) -> str:
        return f"{self._name} {number} {'even' if number % 2 == 0 else 'odd'}"

    async def append(self, count: int = 1, padding: str = "") -> None:
        of = [record(self.message(self.sent + n) + padding) for n in range(count)]
        payload = encode(self._tenant.id, self._tenant.pipeline, [request(of)])
        await append_payload(self._appender, self._tenant.pipeline, payload)
        self.sent += count

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Append in the background; a block is appended whole or not at all."""
        stopping = asyncio.Event()

        async def loop() -> None:
            while not stopping.is_set():
                with contextlib.suppress(journal.errors.UnavailableError):  # the server restarts
                    await self.append(self._rng.choice([1, 1, 3, 20, 60]))
                await asyncio.sleep(self._rng.choice([0, 0.001, 0.005]))

        task = asyncio.create_task(loop())
        try:
            yield
        finally:
            stopping.set()
            await task

    def numbers(self, messages: Sequence[str]) -> list[int]:
        """The numbers of this producer's messages, in their order."""
        found = (text.split() for text in messages)
        return [int(words[1]) for words in found if words[0] == self._name]

    async def seen_by(self, *watchers: Watcher) -> None:
        """Wait until all that was sent so far was seen."""
        for watcher in watchers:
            await watcher.until_seen(self.message(self.sent - 1))


def exactly_once(producer: Producer, watcher: Watcher) -> None:
    """Assert that a tail saw all of a producer from somewhere on, each once and in order."""
    history, live = producer.numbers(watcher.history), producer.numbers(watcher.live)
    both = sorted(history + live)
    assert len(set(both)) == len(both), "some were seen twice"
    assert history == sorted(history)
    assert live == sorted(live)
    assert both == list(range(both[0], producer.sent)), "some were missed"


# The journal's side


def channel(tenant: world.Tenant) -> str:
    return names.journal_pipeline(tenant.id, tenant.pipeline) + "l"


async def listeners(tenant: world.Tenant) -> int:
    """Subscriptions to the channel of the tenant's pipeline."""
    [(_, count)] = await tenant.redis.pubsub_numsub(channel(tenant))
    return int(count)


async def kill_connections(tenant: world.Tenant) -> None:
    """Break all connections of the tenant's tail user."""
    user = names.redis_user(tenant.id, "tail")
    await tenant.redis.execute_command("CLIENT", "KILL", "USER", user)


async def drop_lease(tenant: world.Tenant) -> None:
    await tenant.redis.delete(names.journal_pipeline(tenant.id, tenant.pipeline) + "t")
