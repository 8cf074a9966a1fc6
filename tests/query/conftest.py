"""The query role, running against the session's servers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent import futures
from pathlib import Path

import httpx2
import msgspec
import pytest
import world
from serving import Role, serving, until

from logweir.backends import provision, redis_client, segments_reader
from logweir.core import keys
from logweir.core.binding import JournalServer, Login, QueryBinding
from logweir.core.names import PipelineId
from logweir.query import app
from logweir.runtime import watch
from logweir.standalone import servers

Serve = Callable[[], contextlib.AbstractAsyncContextManager[Role]]
ClientOf = Callable[..., Awaitable[httpx2.AsyncClient]]


@pytest.fixture(scope="session")
def binding(postgres, valkey, roots) -> QueryBinding:
    return QueryBinding(
        store=world.store_server(postgres),
        journal=JournalServer(servers.LOOPBACK, valkey.port),
        control_login=Login(provision.QUERY, provision.platform_password(roots, provision.QUERY)),
        read_roots={"1": roots.read.hex()},
        sign_roots={"1": roots.sign.hex()},
    )


@pytest.fixture(scope="session")
def role(binding: QueryBinding, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Role]:
    """One role for all tests, in a thread of its own; it hears of new tenants at once."""
    started: futures.Future[tuple[Role, asyncio.AbstractEventLoop, asyncio.Event]]
    started = futures.Future()

    async def run() -> None:
        done = asyncio.Event()
        async with serving(app.run, tmp_path_factory.mktemp("query"), binding, "query") as found:
            started.set_result((found, asyncio.get_running_loop(), done))
            await done.wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "POLL_S", 0.05)
        patch.setattr(segments_reader, "IDLE_S", 1.0)  # there are more tenants than connections
        thread = threading.Thread(target=asyncio.run, args=(run(),), name="query role")
        thread.start()
        found, loop, done = started.result(30)
        yield found
        loop.call_soon_threadsafe(done.set)
        thread.join()


@pytest.fixture
def serve(binding: QueryBinding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Runs another role, for tests that end or disturb it."""
    monkeypatch.setattr(watch, "POLL_S", 0.05)
    return lambda: serving(app.run, tmp_path, binding, "query")


@pytest.fixture
async def query_key(tenant: world.Tenant) -> str:
    return await tenant.api_key(keys.SCOPE_QUERY)


class Keys(msgspec.Struct):
    """An access key and an ingest key."""

    query: str
    ingest: str


@pytest.fixture(scope="session")
def empty_keys(postgres, valkey, roots) -> Keys:
    """Keys of a tenant without records, for what is refused before they matter."""

    async def make() -> Keys:
        server = JournalServer(servers.LOOPBACK, valkey.port)
        client = redis_client.client(server, Login("lw_operator", "operator"))
        await provision.bootstrap_journal(client)
        tenant = await world.make_tenant("test-empty", postgres, valkey, client, roots)
        made = Keys(await tenant.api_key(keys.SCOPE_QUERY), await tenant.api_key(keys.SCOPE_INGEST))
        await tenant.close()
        return made

    return asyncio.run(make())


@pytest.fixture
async def empty_client(empty_keys: Keys, client_of: ClientOf) -> httpx2.AsyncClient:
    return await client_of(empty_keys.query)


async def until_heard(role: Role, tenant: world.Tenant) -> None:
    """Wait until the role has read the control schema as it is now, for a tenant that it knows."""
    row = await tenant.control.ensure_api_key(
        tenant.row, "probe", PipelineId(0), keys.SCOPE_QUERY, 1, None
    )
    await tenant.control.ensure_api_key(
        tenant.row, "probe", PipelineId(0), keys.SCOPE_QUERY, 2, None
    )
    headers = {"x-api-key": tenant.key_text(row.key())}
    async with httpx2.AsyncClient(headers=headers) as client:

        async def is_revoked() -> bool:
            return (await client.get(f"{role.url}/api/v1/query")).status_code == 401

        await until(is_revoked)


@pytest.fixture
async def client_of(role: Role) -> AsyncIterator[ClientOf]:
    """Makes clients with a good key, once the role knows its tenant; given that, also once it has
    heard of all that was changed."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(key: str, tenant: world.Tenant | None = None) -> httpx2.AsyncClient:
            client = httpx2.AsyncClient(
                base_url=role.url, headers={"authorization": f"Bearer {key}"}, timeout=30
            )
            await stack.enter_async_context(client)

            async def is_known() -> bool:
                path = "/api/v1/receipts/00000000-0000-7000-8000-000000000000.0"
                return (await client.get(path)).status_code == 200

            await until(is_known)
            if tenant is not None:
                await until_heard(role, tenant)
            return client

        yield make


@pytest.fixture
async def client(query_key: str, client_of: ClientOf) -> httpx2.AsyncClient:
    """A client of the query role with a key of `tenant`."""
    return await client_of(query_key)
