"""Ingest behind a real HTTP server on the loopback address, and what it left in the journal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import httpx2
import uvloop
from world import Tenant

from logweir.backends import journal
from logweir.core import block, columns, keys, names
from logweir.core.binding import IngestBinding
from logweir.core.names import PipelineId
from logweir.ingest.app import Ingest
from logweir.runtime import web
from logweir.runtime.life import Life
from logweir.runtime.settings import Listen


class Door:
    """One tenant's way in, over HTTP."""

    def __init__(self, url: str, tenant: Tenant, key: str) -> None:
        self.url = url
        self.tenant = tenant
        self.key = key
        self.http = httpx2.AsyncClient(base_url=url, timeout=20)

    async def post(
        self,
        body: Any = b"",
        *,
        path: str = "/ingest",
        headers: dict[str, str] | Sequence[tuple[str, str | bytes]] = (),
        key: str | None = None,
    ) -> httpx2.Response:
        """POST a body (records are sent as JSON), with the tenant's key unless another is given."""
        content = json.dumps(body).encode() if isinstance(body, dict | list) else body
        own = [("X-API-Key", self.key if key is None else key)]
        more = list(headers.items()) if isinstance(headers, dict) else list(headers)
        sent = [(name, value) for name, value in [*own, *more] if value]
        return await self.http.post(path, content=content, headers=sent)


@contextlib.asynccontextmanager
async def serving(asgi: web.Asgi) -> AsyncIterator[tuple[str, Life]]:
    """Serve an application; yields its URL and the life that ends it."""
    listener, port = listening()
    life = Life()
    task = asyncio.create_task(web.serve(asgi, Listen(fd=listener.detach()), life))
    try:
        yield f"http://127.0.0.1:{port}", life
    finally:
        life.stopping.set()
        await task


def listening() -> tuple[socket.socket, int]:
    """A socket that listens on a free port of the loopback address."""
    made = socket.create_server(("127.0.0.1", 0), backlog=128)
    return made, made.getsockname()[1]


@contextlib.asynccontextmanager
async def opened(url: str, tenant: Tenant, key: str = "") -> AsyncIterator[Door]:
    """A door of a tenant, with a key for its pipeline `default` unless one is given."""
    key = key or await tenant.api_key(keys.SCOPE_INGEST, tenant.pipeline)
    door = Door(url, tenant, key)
    async with door.http:
        yield door


@contextlib.asynccontextmanager
async def ingest(tenant: Tenant, app: Ingest, key: str = "") -> AsyncIterator[Door]:
    """Serve a tenant by an application of its own."""
    await app.bind(binding(tenant))
    try:
        async with serving(app) as (url, _), opened(url, tenant, key) as door:
            yield door
    finally:
        await app.drain()


class Server:
    """One application for many tests, in a thread with a loop of its own, as in a process."""

    def __init__(self) -> None:
        listener, self.port = listening()
        self._listen = Listen(fd=listener.detach())
        self._app = Ingest()
        self._life: Life | None = None
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()])

    async def _serve(self) -> None:
        self._life = Life()
        await web.serve(self._app, self._listen, self._life)
        await self._app.drain()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(lambda: self._life.stopping.set())
        self._thread.join(20)
        self._loop.close()

    @contextlib.asynccontextmanager
    async def door(self, tenant: Tenant, *others: Tenant, key: str = "") -> AsyncIterator[Door]:
        """Serve these tenants and no other; a door of the first."""
        known = binding(tenant, *others)
        bound = asyncio.run_coroutine_threadsafe(self._app.bind(known), self._loop)
        await asyncio.wrap_future(bound)
        async with opened(f"http://127.0.0.1:{self.port}", tenant, key) as door:
            yield door


class Wire:
    """A connection on which a test writes bytes of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers, body."""
        async with asyncio.timeout(10):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (o.split(": ", 1) for o in lines)}
            body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return int(first.split()[1]), headers, body

    async def is_closed(self) -> bool:
        async with asyncio.timeout(10):
            return await self._reader.read(1) == b""


@contextlib.asynccontextmanager
async def wire(door: Door) -> AsyncIterator[Wire]:
    """A raw connection to a door's server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(door.url.rsplit(":", 1)[1]))
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()


def binding(*tenants: Tenant) -> IngestBinding:
    return IngestBinding(tuple(one.ingest_binding() for one in tenants))


async def entries(tenant: Tenant, pipeline: PipelineId | None = None) -> list[journal.Entry]:
    """All that is in a pipeline's stream, read as the operator."""
    stream = names.journal_pipeline(tenant.id, pipeline or tenant.pipeline) + "q"
    return journal.entries_of(await journal.command(tenant.redis, "XRANGE", stream, "-", "+"))


async def stored(tenant: Tenant, pipeline: PipelineId | None = None) -> list[dict[str, Any]]:
    """All records in a pipeline's stream, decoded."""
    found = await entries(tenant, pipeline)
    return [record for entry in found for record in records_of(entry.payload)]


def records_of(payload: bytes) -> Iterator[dict[str, Any]]:
    """The records of a block, in its order; what is empty is left out."""
    _, found = block.decode(payload)
    texts: dict[str, Sequence[bytes]] = {
        name: columns.split(getattr(found, name), found.n) for name in columns.TEXTS
    }
    for index in range(found.n):
        record = {
            "time_ns": int(found.time_ns[index]),
            "labels": dict(found.label_sets[found.label_set[index]]),
            "flags": int(found.flags[index]),
        } | {name: texts[name][index].decode() for name in columns.TEXTS}
        yield {name: value for name, value in record.items() if value or name == "message"}
