"""`logweir bootstrap`: brings databases to what this program needs, before the roles of it start.

    Secrets of the bundled databases (evaluation) -> roots -> wait for both servers
        -> logins, database, control schema -> function library -> settings

The chart's job of each revision. It may run again at any time, two at once too, and an older
program leaves a newer schema as it is. The only one that sees the superuser's password.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg
from redis import exceptions

from logweir.backends import closing, journal, migrations, provision, redis_client, store
from logweir.backends.rotations import Rotations
from logweir.core import errors, names
from logweir.core.binding import JournalServer, Login, PostgresServer
from logweir_operator import own_secrets, roots
from logweir_operator.config import Config, Evaluation, Servers
from logweir_operator.kube import Kube, KubeError
from logweir_operator.rootsets import RootSecrets, RootSet
from logweir_operator.tenancy import Tenancy

RETRY_S: Final = 1.0
LOCK: Final = "select pg_advisory_lock(hashtextextended('logweir bootstrap', 0))"
SUPERUSER: Final = "postgres"
JOURNAL_OPERATOR: Final = "lw_operator"

Say = Callable[[str], None]


async def run(config: Config, kube: Kube, say: Say) -> None:
    """Do all of it.

    Args:
        config: of the operator.
        kube: with the rights of the job's ServiceAccount.
        say: gets a line for a person at each step.

    Raises:
        SetupError: something is wrong that a person must put right.
        UnavailableError: a database does not answer.
        KubeError: the API server refused, or did not answer.
    """
    if config.evaluation is not None:
        await _make_passwords(config, config.evaluation, kube, say)
    servers, superuser = config.servers(), config.superuser()
    deadline_s = time.monotonic() + config.bootstrap_wait_s
    await _until_it_answers(
        f"PostgreSQL at {servers.store.host}:{servers.store.port}",
        lambda: asyncio.to_thread(_knock, *superuser),
        deadline_s,
        say,
    )
    await _until_it_answers(
        f"Redis at {servers.journal.host}:{servers.journal.port}",
        lambda: _ping(servers.journal, servers.journal_login),
        deadline_s,
        say,
    )
    async with await psycopg.AsyncConnection.connect(_conninfo(*superuser), autocommit=True) as one:
        await one.execute(LOCK)  # until the connection ends
        vault = own_secrets.SecretVault(kube, config.namespace, config.release)
        found = await _roots(config, kube, superuser, say)
        while True:
            await _prepare(config, servers, superuser, vault, found, say)
            after = await vault.read()
            if after.used == found.used:
                break
            found = after  # the operator has turned the roots meanwhile
    say("done: the databases are ready")


# ---- Secrets ---------------------------------------------------------------------------------


async def _make_passwords(config: Config, bundled: Evaluation, kube: Kube, say: Say) -> None:
    """Make the Secrets of the bundled databases, once, and write them where `config` looks."""
    wanted = {
        Path(config.postgres_folder): ("postgres", bundled.postgres_host, "5432", SUPERUSER),
        Path(config.redis_folder): ("redis", bundled.redis_host, "6379", JOURNAL_OPERATOR),
    }
    for folder, (name, host, port, user) in wanted.items():
        login = {"username": user, "password": secrets.token_hex(24)}
        data = await _ensure(
            config, kube, f"{config.release}-{name}", {"host": host, "port": port, **login}, say
        )
        found = base64.b64decode(data.get("host", "")).decode(errors="replace")
        if found != host:
            raise errors.SetupError(
                f"The Secret {config.release}-{name} is there already and is not the bundled"
                f" database's: its host is {found!r}.",
                hint="Give it another name, or leave evaluation.enabled out to use its database.",
            )
        for key, value in data.items():
            folder.joinpath(key).write_bytes(base64.b64decode(value))


async def _roots(
    config: Config, kube: Kube, superuser: tuple[PostgresServer, Login], say: Say
) -> RootSecrets:
    """Return the roots; new ones where there is nothing that others were used for."""
    name = own_secrets.roots_name(config.release)
    if await kube.get(own_secrets.SECRET, config.namespace, name) is None:
        if await asyncio.to_thread(_has_tenants, *superuser):
            raise errors.SetupError(
                f"The Secret {name} with the root keys is not there, but the database"
                f" {provision.DATABASE} has tenants of theirs.",
                hint="Put the Secret back from a copy. New roots would end every API key; who"
                f" wants that drops the database {provision.DATABASE} first.",
            )
        fresh = RootSecrets(roots=[RootSet.fresh(1)])
        data = {own_secrets.ROOTS_KEY: msgspec.json.encode(fresh).decode()}
        await _ensure(config, kube, name, data, say)
    return await own_secrets.SecretVault(kube, config.namespace, config.release).read()


async def _ensure(
    config: Config, kube: Kube, name: str, texts: Mapping[str, str], say: Say
) -> Mapping[str, str]:
    """Return the data of a Secret, made of these texts if there is none; never replaced."""
    found = await kube.get(own_secrets.SECRET, config.namespace, name)
    if found is None:
        document = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": name,
                "namespace": config.namespace,
                "labels": {
                    "app.kubernetes.io/name": "logweir",
                    "app.kubernetes.io/part-of": "logweir",
                    "app.kubernetes.io/instance": config.release,
                },
            },
            "type": "Opaque",
            "data": {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()},
        }
        try:
            found = await kube.create(document)
            say(f"Secret {name}: made")
        except KubeError as error:
            if not error.is_conflict:
                raise
            return await _ensure(config, kube, name, texts, say)  # another one was faster
    data: Mapping[str, str] = found.get("data") or {}
    return data


# ---- databases -------------------------------------------------------------------------------


async def _until_it_answers(
    what: str, look: Callable[[], Any], deadline_s: float, say: Say
) -> None:
    """Wait for a server, and say each new reason why it does not answer."""
    said = ""
    while True:
        try:
            await look()
        except (psycopg.Error, exceptions.RedisError, OSError) as error:
            why = " ".join(str(error).split())
            if time.monotonic() > deadline_s:
                raise errors.UnavailableError(f"{what} does not answer: {why}") from error
            if why != said:
                say(f"waiting for {what}: {why}")
                said = why
            await asyncio.sleep(RETRY_S)
        else:
            say(f"{what}: answers")
            return


def _conninfo(server: PostgresServer, login: Login) -> str:
    return store.conninfo(server, login, "logweir bootstrap")


def _knock(server: PostgresServer, login: Login) -> None:
    # A Service that was just made drops packets for a moment, where a refusal would come later.
    with psycopg.connect(_conninfo(server, login), connect_timeout=2):
        pass


async def _ping(server: JournalServer, login: Login) -> None:
    client = redis_client.client(server, login, connections=1)
    try:
        await journal.command(client, "PING")
    finally:
        await client.aclose()


def _has_tenants(server: PostgresServer, login: Login) -> bool:
    with psycopg.connect(_conninfo(server, login), autocommit=True) as connection:
        exists = connection.execute(
            "select 1 from pg_database where datname = %s", [provision.DATABASE]
        ).fetchone()
    if not exists:
        return False
    there = msgspec.structs.replace(server, database=provision.DATABASE)
    with psycopg.connect(_conninfo(there, login), autocommit=True) as connection:
        if not migrations.revision(connection, names.CONTROL_SCHEMA):
            return False
        return connection.execute("select 1 from logweir.tenants limit 1").fetchone() is not None


async def _prepare(
    config: Config,
    servers: Servers,
    superuser: tuple[PostgresServer, Login],
    vault: own_secrets.SecretVault,
    found: RootSecrets,
    say: Say,
) -> None:
    site = roots.site_of(servers.store, servers.journal, found)
    as_superuser = _conninfo(*superuser)
    await asyncio.to_thread(provision.bootstrap_store, as_superuser, site.roots, site.version)
    say(f"PostgreSQL: logins and the database {provision.DATABASE} are there")
    if config.evaluation is not None:
        await asyncio.to_thread(closing.close_other_databases, as_superuser, provision.DATABASE)
    conninfo = roots.conninfo(site)
    await asyncio.to_thread(provision.upgrade_control, conninfo)
    say(f"control schema: {await asyncio.to_thread(_schema_version, conninfo)}")
    control = Rotations(conninfo)
    client = redis_client.client(servers.journal, servers.journal_login)
    try:
        tenancy = Tenancy(config.cluster, site, control, client, vault)
        await tenancy.prepare()
    finally:
        await control.close()
        await client.aclose()
    say("Redis: function library and users are there; settings of both servers are right")


def _schema_version(conninfo: str) -> str:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        found = migrations.revision(connection, names.CONTROL_SCHEMA)
    newest = migrations.HEADS["control"]
    return f"{found}, newer than this program's {newest}" if found > newest else found
