"""A server of the ingest role that the tests here share; each test is its only tenant."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import ingest_door
import pytest
from world import Tenant


@pytest.fixture(scope="session")
def ingest_server() -> Iterator[ingest_door.Server]:
    server = ingest_door.Server()
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def make_tenant(
    make_journal_tenant: Callable[..., Awaitable[Tenant]],
) -> Callable[..., Awaitable[Tenant]]:
    """Ingest knows the journal alone, so its tenants have nothing else."""
    return make_journal_tenant


@pytest.fixture
async def door(
    ingest_server: ingest_door.Server, tenant: Tenant
) -> AsyncIterator[ingest_door.Door]:
    """The way in to a new tenant with one pipeline."""
    async with ingest_server.door(tenant) as made:
        yield made
