"""The auth role in the test's loop, and clients with keys of a tenant."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx2
import pytest
import world
from serving import Role, serving, until

from logweir.auth import app, teller
from logweir.backends import provision, redis_client
from logweir.core import keys
from logweir.core.binding import AuthBinding, JournalServer, Login
from logweir.runtime import watch
from logweir.standalone import servers

ClientOf = Callable[..., Awaitable[httpx2.AsyncClient]]


@pytest.fixture
async def binding(postgres, valkey, roots) -> AuthBinding:
    journal = JournalServer(servers.LOOPBACK, valkey.port)
    operator = redis_client.client(journal, Login("lw_operator", "operator"))
    await provision.bootstrap_auth_user(operator, roots)
    await operator.aclose()
    return AuthBinding(
        store=world.store_server(postgres),
        journal=journal,
        control_login=login(roots, provision.AUTH),
        journal_login=login(roots, provision.JOURNAL_AUTH),
        sign_roots={"1": roots.sign.hex()},
    )


def login(roots: provision.Roots, name: str) -> Login:
    return Login(name, provision.platform_password(roots, name))


@pytest.fixture
async def role(binding, tmp_path, monkeypatch) -> AsyncIterator[Role]:
    """The role; it looks at the control schema often, so that tests are quick."""
    monkeypatch.setattr(watch, "POLL_S", 0.05)
    monkeypatch.setattr(teller, "POLL_S", 0.05)
    async with serving(app.run, tmp_path, binding, "auth") as found:
        yield found


@pytest.fixture
async def client_of(role: Role) -> AsyncIterator[ClientOf]:
    """Makes clients with a key, once the role knows its tenant."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(key: str) -> httpx2.AsyncClient:
            client = httpx2.AsyncClient(
                base_url=role.url, headers={"authorization": f"Bearer {key}"}, timeout=30
            )
            await stack.enter_async_context(client)

            async def is_known() -> bool:
                return (await client.get("/api/v1/keys")).status_code in (200, 403)

            await until(is_known)
            return client

        yield make


@pytest.fixture
async def client(tenant: world.Tenant, client_of: ClientOf) -> httpx2.AsyncClient:
    """A client with an admin key, named `boss`, of the tenant."""
    return await client_of(await tenant.api_key(keys.SCOPE_ADMIN, name="boss"))
