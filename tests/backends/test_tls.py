"""TLS to PostgreSQL and Redis: every door verifies the server, and says why it refused one.

The embedded PostgreSQL speaks no TLS, so a front of the test's own does the handshake for it; Redis
does its own.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import psycopg
import pytest
import world
from authorities import DAY, Authority, fronted
from builders import delivery, record

from logweir.backends import control, journal, keeper_store, provision, redis_client, store
from logweir.backends.journal_tail import TailReader
from logweir.backends.segments_reader import Reader
from logweir.core import errors
from logweir.core.binding import JournalServer, Login, PostgresServer
from logweir.standalone import binaries, servers

HOST = servers.LOOPBACK


class Case(msgspec.Struct, frozen=True):
    """A server that is wrong in one way: what is found, and what is to be done."""

    found_by_postgres: str
    found_by_redis: str
    advice: str


CASES = {
    "another CA": Case("certificate verify failed", "certificate verify failed", "of the CA that"),
    "another host": Case("does not match host name", "not valid for '127.0.0.1'", "by a name that"),
    "expired": Case("certificate verify failed", "certificate has expired", "Renew"),
    "plaintext": Case("does not support SSL", "did not answer in TLS", "Turn TLS on"),
    "no CA file": Case('none.pem" does not exist', 'none.pem" does not exist', "Put the cert"),
}


class Certificates(msgspec.Struct, frozen=True):
    """Two authorities, and certificates of the first one by what is wrong with them."""

    ca: Path
    other_ca: Path
    files: dict[str, tuple[Path, Path]]

    def ca_of(self, case: str) -> str:
        """The CA file that a client has."""
        files = {"another CA": self.other_ca, "no CA file": self.ca.with_name("none.pem")}
        return str(files.get(case, self.ca))

    def of(self, case: str) -> tuple[Path, Path]:
        """The files that a server has."""
        return self.files.get(case, self.files["good"])


@pytest.fixture(scope="module")
def certificates(servers_folder: Path) -> Iterator[Certificates]:
    folder = servers_folder / "certificates"
    folder.mkdir()
    ca, other = Authority(folder / "ca", "ours"), Authority(folder / "other", "theirs")
    files = {
        "good": ca.issue(HOST, "localhost", name="good"),
        "another host": ca.issue("db.example", name="host"),
        "expired": ca.issue(HOST, valid=-DAY, name="expired"),
    }
    yield Certificates(ca.file, other.file, files)
    shutil.rmtree(folder)


# ---- PostgreSQL ------------------------------------------------------------------------------


@contextlib.contextmanager
def postgres_with(
    case: str, tenant: world.Tenant, certificates: Certificates
) -> Iterator[PostgresServer]:
    """The tenant's PostgreSQL as a client sees it that verifies all."""
    with contextlib.ExitStack() as stack:
        port = tenant.postgres.port
        if case != "plaintext":
            port = stack.enter_context(fronted(port, certificates.of(case), is_postgres=True))
        yield PostgresServer(
            HOST, port, provision.DATABASE, "verify-full", certificates.ca_of(case)
        )


async def commit(server: PostgresServer, tenant: world.Tenant) -> None:
    door = store.Store(server, tenant.store_login("w"), tenant.id)
    one = delivery(tenant.id, tenant.pipeline, [record("hello")])
    try:
        await door.commit(tenant.pipeline, [one], now_ns=time.time_ns(), retention_days=30)
    finally:
        await door.close()


async def read(server: PostgresServer, tenant: world.Tenant) -> None:
    reader = Reader(server, tenant.store_login("r"), tenant.id, 2)
    try:
        async with reader.snapshot() as snapshot:
            await snapshot.keys({tenant.pipeline: 0}, 1)
    finally:
        await reader.close()


async def keep(server: PostgresServer, tenant: world.Tenant) -> None:
    door = keeper_store.KeeperStore(server, tenant.store_login("k"), tenant.id)
    try:
        await door.horizons()
    finally:
        await door.close()


async def look(server: PostgresServer, tenant: world.Tenant) -> None:
    login = Login(provision.KEEPER, provision.platform_password(tenant.roots, provision.KEEPER))
    door = keeper_store.Activity(server, login)
    try:
        await door.inserted()
    finally:
        await door.close()


async def ask(server: PostgresServer, tenant: world.Tenant) -> None:
    login = world.operator_login(tenant.roots)
    door = control.Control(store.conninfo(server, login, "logweir test"))
    try:
        await door.tenants()
    finally:
        await door.close()


STORE_DOORS = [commit, read, keep, look, ask]
StoreDoor = Callable[[PostgresServer, world.Tenant], Awaitable[None]]


@pytest.mark.parametrize("door", STORE_DOORS)
async def test_a_door_to_postgresql_opens_when_all_is_verified(door, tenant, certificates):
    with postgres_with("good", tenant, certificates) as server:
        await door(server, tenant)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("door", STORE_DOORS)
async def test_a_door_to_postgresql_stays_shut_and_says_why(
    door, case, tenant, certificates, monkeypatch
):
    monkeypatch.setattr("logweir.backends.segments_reader.CONNECTION_WAIT_S", 0.3)
    with (
        postgres_with(case, tenant, certificates) as server,
        pytest.raises(errors.UnavailableError) as refused,
    ):
        await door(server, tenant)

    assert CASES[case].found_by_postgres in str(refused.value)
    assert CASES[case].advice in str(refused.value)
    assert ".." not in str(refused.value)


def test_the_front_of_the_tests_speaks_tls_to_libpq(tenant, certificates):
    with postgres_with("good", tenant, certificates) as server:
        conninfo = store.conninfo(server, tenant.store_login("r"), "logweir test")
        with psycopg.connect(conninfo) as connection:
            assert connection.pgconn.ssl_in_use


# ---- Redis -----------------------------------------------------------------------------------


class Secured(msgspec.Struct):
    """A Redis with TLS on a port of its own, and a tenant in it."""

    tenant: world.Tenant
    port: int

    async def use(self, files: tuple[Path, Path]) -> None:
        certificate, key = files
        await self.tenant.redis.config_set(
            "tls-cert-file", str(certificate), "tls-key-file", str(key)
        )

    async def server(self, case: str, certificates: Certificates) -> JournalServer:
        """It, as a client sees it that verifies all."""
        await self.use(certificates.of(case))
        port = self.tenant.valkey.port if case == "plaintext" else self.port
        return JournalServer(HOST, port, tls=True, ca_file=certificates.ca_of(case))


@pytest.fixture
async def secured(
    start_journal, make_journal_tenant, certificates: Certificates
) -> AsyncIterator[Secured]:
    program = binaries.redis()
    if program is None:
        pytest.skip("no redis-server of 7.0 or newer on this machine; .ci/run installs it")
    tenant = await make_journal_tenant(start_journal(program=program))
    for one in certificates.ca.parent.iterdir():
        one.chmod(0o644)  # for the servers' user
    found = Secured(tenant, servers.free_port())
    await found.use(certificates.files["good"])
    await tenant.redis.config_set(
        *("tls-ca-cert-file", str(certificates.ca)),
        *("tls-auth-clients", "no", "tls-port", found.port),
    )
    return found


async def append(server: JournalServer, tenant: world.Tenant) -> None:
    door = journal.Appender(server, tenant.journal_login("in"), tenant.id)
    try:
        await door.revoked_keys()
    finally:
        await door.close()


async def drain(server: JournalServer, tenant: world.Tenant) -> None:
    door = journal.Reader(server, tenant.journal_login("col"), tenant.id, "c0")
    try:
        await door.read([tenant.pipeline], 1, 0.01)
        await door.backlog(tenant.pipeline)
    finally:
        await door.close()


async def tail(server: JournalServer, tenant: world.Tenant) -> None:
    door = TailReader(server, tenant.journal_login("tail"), tenant.id)
    try:
        await door.newest(tenant.pipeline)
    finally:
        await door.close()


async def subscribe(server: JournalServer, tenant: world.Tenant) -> None:
    door = TailReader(server, tenant.journal_login("tail"), tenant.id)
    listening = door.subscription()
    try:
        await listening.add([tenant.pipeline])
    finally:
        await listening.close()
        await door.close()


async def operate(server: JournalServer, _: world.Tenant) -> None:
    client = redis_client.client(server, Login("lw_operator", "operator"))
    try:
        async with journal.door("answer", 5):
            await journal.answer_of(client.ping())
    finally:
        await client.aclose()


JOURNAL_DOORS = [append, drain, tail, subscribe, operate]


@pytest.mark.parametrize("door", JOURNAL_DOORS)
async def test_a_door_to_redis_opens_when_all_is_verified(door, secured, certificates):
    await door(await secured.server("good", certificates), secured.tenant)


@pytest.mark.parametrize("case", CASES)
async def test_the_doors_to_redis_stay_shut_and_say_why(case, secured, certificates, monkeypatch):
    monkeypatch.setattr(redis_client, "CONNECT_TIMEOUT_S", 0.3)
    server = await secured.server(case, certificates)
    for door in JOURNAL_DOORS:
        with pytest.raises(errors.UnavailableError) as refused:
            await door(server, secured.tenant)

        assert CASES[case].found_by_redis in str(refused.value)
        assert CASES[case].advice in str(refused.value)


async def test_no_door_to_redis_speaks_less_than_tls_1_2(secured, certificates):
    server = await secured.server("good", certificates)
    await secured.tenant.redis.config_set("tls-protocols", "TLSv1.1")

    with pytest.raises(errors.UnavailableError):
        await append(server, secured.tenant)
