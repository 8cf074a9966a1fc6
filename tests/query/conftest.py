"""The query role, running against the session's servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
import world
from serving import Role, serving

from logweir.backends import provision
from logweir.core import keys
from logweir.core.binding import JournalServer, Login, QueryBinding
from logweir.query import app
from logweir.standalone import servers


@pytest.fixture
def binding(postgres, valkey, roots) -> QueryBinding:
    return QueryBinding(
        store=world.store_server(postgres),
        journal=JournalServer(servers.LOOPBACK, valkey.port),
        control_login=Login(provision.QUERY, provision.platform_password(roots, provision.QUERY)),
        read_root=roots.read.hex(),
        sign_root=roots.sign.hex(),
    )


@pytest.fixture
async def role(binding: QueryBinding, tmp_path: Path, query_key: str) -> AsyncIterator[Role]:
    """The role, started when the tenant and its key are there."""
    async with serving(app.run, tmp_path, binding, "query") as found:
        yield found


@pytest.fixture
async def query_key(tenant: world.Tenant) -> str:
    return await tenant.api_key(keys.SCOPE_QUERY)


@pytest.fixture
async def client(query_key: str, role: Role) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the query role with a key of `tenant`."""
    async with httpx2.AsyncClient(
        base_url=role.url, headers={"authorization": f"Bearer {query_key}"}, timeout=30
    ) as found:
        yield found
