"""Whoever has a binding file in hand: ingest's reads no logs and makes no access key, the
collector's reads no segments and makes no key at all."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import psycopg
import pytest
import world
from builders import record
from intruding import KINDS, User, append, key
from isolation import asking, credentials, surface
from isolation.commands import UNCHECKED, all_commands
from redis import exceptions
from serving import serving

from logweir.backends import provision, store
from logweir.core import binding, keys, names
from logweir.core.binding import Login

CANARY = "canary-of-its-own"

LOGINS = [(kind, slot) for kind in ("w", "r", "k") for slot in ("a", "b")]


@pytest.fixture
async def own(make_tenant) -> world.Tenant:
    """A tenant with logs in its store, and in its journal."""
    tenant = await make_tenant()
    await tenant.store_records([record(CANARY, service=CANARY)])
    await append(tenant, tenant.appender(), CANARY.encode())
    return tenant


def ingest_file(tenant: world.Tenant) -> bytes:
    return msgspec.json.encode(binding.IngestBinding((tenant.ingest_binding(),)))


def collector_file(tenant: world.Tenant) -> bytes:
    return msgspec.json.encode(binding.CollectorBinding((tenant.collector_binding(),)))


def secrets_of(file: bytes) -> set[str]:
    """Every text of a file that could be a secret."""
    found = {one for one in _texts(msgspec.json.decode(file)) if len(one) >= 32}
    assert found
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def opened_logins(tenant: world.Tenant, file: bytes) -> set[str]:
    """PostgreSQL's logins, the tenant's and the platform's, that a secret of the file opens."""
    own = [names.login(tenant.id, kind, slot) for kind, slot in LOGINS]  # type: ignore[arg-type]
    platform = [provision.OPERATOR, provision.QUERY, provision.KEEPER, "postgres"]
    found = set()
    for user, secret in itertools.product([*own, *platform], secrets_of(file)):
        with contextlib.suppress(psycopg.OperationalError):
            text = store.conninfo(tenant.store_server, Login(user, secret), "test")
            psycopg.connect(text).close()
            found.add(user)
    return found


async def opened_users(tenant: world.Tenant, file: bytes) -> set[str]:
    """Redis's users, of the tenant and the operator's, that a secret of the file opens."""
    known = [names.redis_user(tenant.id, kind) for kind in KINDS]  # type: ignore[arg-type]
    found = set()
    for name, secret in itertools.product([*known, "lw_operator", "default"], secrets_of(file)):
        user = User(tenant.journal_server, Login(name, secret))
        with contextlib.suppress(exceptions.AuthenticationError, exceptions.ConnectionError):
            await user.tries("PING")
            found.add(name)
        await user.close()
    return found


def made_keys(tenant: world.Tenant, file: bytes) -> Iterator[tuple[keys.ApiKey, str]]:
    """Keys of every scope that the secrets of a file can sign, however they are read."""
    for text in secrets_of(file):
        for secret in (bytes.fromhex(text), text.encode()):
            for scopes, revision in itertools.product(range(8), range(3)):
                made = credentials.api_key(tenant.id, scopes, revision=revision)
                yield made, keys.encode(made, secret)


@contextlib.asynccontextmanager
async def _query(tenant: world.Tenant, folder: Any) -> AsyncIterator[asking.Client]:
    [application] = [one for one in surface.APPLICATIONS if one.name == "query"]
    async with serving(
        application.run, folder, application.binding(tenant, tenant), "query"
    ) as role:
        client = asking.Client(role.url)
        yield client
        await client.close()


READS = [
    "/api/v1/query",
    "/api/v1/histogram",
    "/api/v1/labels",
    "/api/v1/labels/service/values",
    "/api/v1/fields",
]


async def test_ingest_s_file_opens_its_own_redis_user_and_nothing_else(own):
    file = ingest_file(own)

    assert opened_logins(own, file) == set()
    assert await opened_users(own, file) == {names.redis_user(own.id, "in")}


async def test_the_collector_s_file_opens_its_own_two_and_nothing_else(own):
    file = collector_file(own)

    assert opened_logins(own, file) == {names.login(own.id, "w", "a")}
    assert await opened_users(own, file) == {names.redis_user(own.id, "col")}


async def test_with_ingest_s_file_no_command_reads_what_was_sent(own):
    user = User(own.journal_server, own.journal_login("in"))
    answers = []
    for command in await all_commands(own):
        if command.name not in UNCHECKED:
            shapes = command.shapes(key(own, "q"), key(own, "q"))
            answers += [str(await user.tries(*words)) for words in shapes]
    await user.close()

    assert len(answers) > 1000
    assert not [one for one in answers if CANARY in one]


@pytest.mark.parametrize("file_of", [ingest_file, collector_file])
async def test_with_a_file_no_key_is_made_that_reads(own, file_of, tmp_path):
    async with _query(own, tmp_path) as client:
        for made, text in made_keys(own, file_of(own)):
            for path in READS:
                answer = await client.ask("GET", path, [("x-api-key", text)])
                assert answer.status in (401, 403), (made, path)
                assert CANARY.encode() not in answer.body
            refused = await client.open_socket("/api/v1/tail", [("x-api-key", text)])
            assert refused.status in (401, 403), made


async def test_with_the_collector_s_file_not_even_an_ingest_key_is_made(own, tmp_path):
    """A receipt may be asked for with one, so there it would show."""
    path = "/api/v1/receipts/00000000-0000-7000-8000-000000000000.0"
    async with _query(own, tmp_path) as client:
        good = await own.api_key(keys.SCOPE_INGEST)
        assert (await client.ask("GET", path, [("x-api-key", good)])).status == 200
        for made, text in made_keys(own, collector_file(own)):
            answer = await client.ask("GET", path, [("x-api-key", text)])
            assert answer.status == 401, made


@pytest.mark.parametrize(
    "statement",
    [
        "select * from segments",
        "select body from segments limit 1",
        "select count(*) from segments",
        "select max(min_ts) from segments",
        "select * from quarantine",
        "select * from usage",
        "insert into segments (min_ts) values (0) returning *",
        "delete from segments returning *",
        "update segments set n = n returning *",
        "copy segments to stdout",
        "lock table segments in access exclusive mode",
    ],
)
async def test_with_the_collector_s_file_no_segment_is_read(own, statement):
    with psycopg.connect(own.conninfo("w")) as connection:
        [(count,)] = connection.execute("select count(*) from ledger").fetchall()
        assert count > 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement.encode())


async def test_with_the_collector_s_file_no_partition_is_read_by_its_own_name(own, postgres):
    with psycopg.connect(postgres.url(database=provision.DATABASE)) as connection:
        query = (
            "select relname from pg_class where relispartition and relkind = 'r'"
            " and relnamespace = %s::regnamespace"
        )
        partitions = [name for (name,) in connection.execute(query, [own.schema]).fetchall()]
    assert partitions
    for name in partitions:
        with (
            psycopg.connect(own.conninfo("w")) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(f"select * from {name}".encode())
