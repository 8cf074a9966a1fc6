"""Real servers for tests: PostgreSQL and Valkey from wheels, started once a session.

Each test that needs a tenant gets a new one (`make_tenant`), so tests share servers and nothing
else. `world.py` has what a tenant of a test can do.
"""

from __future__ import annotations

import gc
import itertools
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import journaling
import pytest
import world

from logweir.backends import provision, redis_client
from logweir.core.binding import JournalServer, Login
from logweir.standalone import accounts, binaries, servers
from logweir.standalone.postgres import Postgres
from logweir.standalone.valkey import Valkey

pytest_plugins = ["controlplane.fixtures"]

# Run in the background of a script, this process ignores SIGINT, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

MakeTenant = Callable[..., Awaitable[world.Tenant]]

_tenant_numbers = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def _frozen_heap() -> None:
    """Thousands of tests leave objects that live to the end; the collector need not walk them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def servers_folder() -> Iterator[Path]:
    """A folder that the servers' user can enter, also when the tests run as root."""
    folder = Path(tempfile.mkdtemp(prefix="logweir-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def roots() -> provision.Roots:
    return provision.Roots(*(letter * 32 for letter in (b"w", b"m", b"r", b"s")))


@pytest.fixture(scope="session")
def postgres(servers_folder: Path, roots: provision.Roots) -> Iterator[Postgres]:
    """A running PostgreSQL with the platform's logins and the control schema."""
    server = Postgres(servers_folder / "postgres", servers.free_port(), "super", accounts.choose())
    server.start(servers_folder / "postgres.log")
    provision.bootstrap_store(server.url(), roots)
    provision.upgrade_control(world.operator_conninfo(server, roots))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def spare_postgres(servers_folder: Path, roots: provision.Roots) -> Iterator[Postgres]:
    """One more PostgreSQL, for tests that stop it or set it wrong; they leave it as it was."""
    server = Postgres(servers_folder / "spare", servers.free_port(), "super", accounts.choose())
    server.start(servers_folder / "spare.log")
    provision.bootstrap_store(server.url(), roots)
    provision.upgrade_control(world.operator_conninfo(server, roots))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def valkey(servers_folder: Path) -> Iterator[Valkey]:
    """A running Valkey, without the function library."""
    server = Valkey(servers_folder / "valkey", servers.free_port(), "operator", accounts.choose())
    server.start(servers_folder / "valkey.log")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis7(servers_folder: Path) -> Iterator[Valkey]:
    """A running Redis of the system, where there is one."""
    program = binaries.redis()
    if program is None:
        pytest.skip("no redis-server of 7.0 or newer on this machine; .ci/run installs it")
    server = Valkey(
        servers_folder / "redis", servers.free_port(), "operator", accounts.choose(), program
    )
    server.start(servers_folder / "redis.log")
    yield server
    server.stop()


@pytest.fixture(scope="session", params=["valkey", "redis7"])
def each_journal(request: pytest.FixtureRequest) -> Valkey:
    """The journal's server: Valkey, then Redis 7."""
    found: Valkey = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def start_journal(servers_folder: Path) -> Iterator[Callable[..., Valkey]]:
    """Starts Valkeys of the test's own, to be stopped, killed or filled: `start_journal()`."""
    started: list[Valkey] = []

    def start(**options: object) -> Valkey:
        folder = Path(tempfile.mkdtemp(prefix="journal-", dir=servers_folder))
        folder.chmod(0o755)
        server = Valkey(
            folder / "data", servers.free_port(), "operator", accounts.choose(), **options
        )
        server.start(folder / "log")
        started.append(server)
        return server

    yield start
    for server in started:
        if server.process is not None:
            server.process.send_signal(signal.SIGCONT)
        server.stop(wait_s=5)


@pytest.fixture
async def make_tenant(
    postgres: Postgres, valkey: Valkey, roots: provision.Roots
) -> AsyncIterator[MakeTenant]:
    """Makes tenants, each with pipelines, as the operator would: `await make_tenant()`."""
    made: list[world.Tenant] = []

    async def make(
        journal: Valkey | None = None, store: Postgres | None = None, **options: object
    ) -> world.Tenant:
        server = journal or valkey
        client = redis_client.client(
            JournalServer(servers.LOOPBACK, server.port), Login("lw_operator", "operator")
        )
        await provision.bootstrap_journal(client)
        tenant = await world.make_tenant(
            f"test-{next(_tenant_numbers)}", store or postgres, server, client, roots, **options
        )
        made.append(tenant)
        return tenant

    yield make
    for tenant in made:
        await tenant.close()


@pytest.fixture
async def make_journal_tenant(valkey: Valkey, roots: provision.Roots) -> AsyncIterator[MakeTenant]:
    """Makes tenants that have a journal only: no PostgreSQL is started for them."""
    made: list[world.Tenant] = []

    async def make(journal: Valkey | None = None, **options: object) -> world.Tenant:
        server = journal or valkey
        client = redis_client.client(
            JournalServer(servers.LOOPBACK, server.port), Login("lw_operator", "operator")
        )
        await provision.bootstrap_journal(client)
        name = f"test-{next(_tenant_numbers)}"
        made.append(await journaling.make_tenant(name, server, client, roots, **options))
        return made[-1]

    yield make
    for tenant in made:
        await tenant.close()


@pytest.fixture
async def tenant(make_tenant: MakeTenant) -> world.Tenant:
    """A tenant with one pipeline, `default`."""
    return await make_tenant()
