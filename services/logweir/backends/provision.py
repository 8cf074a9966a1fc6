"""Makes what a tenant needs in PostgreSQL and Redis; from any half-done state, always to the same.

    bootstrap_store    platform logins, the database, the control schema    (once an installation)
    provision_store    a tenant's schema, logins, grants, partitions        (each reconcile)
    bootstrap_journal  the function library, the user of auth               (once an installation)
    provision_journal  a tenant's ACL users, limits, streams                (each reconcile)

Every step may run again. Passwords are derived from the roots, and reach PostgreSQL as SCRAM
verifiers only, so that no log of the server can hold one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
import psycopg
from psycopg import sql
from redis import asyncio as redis
from redis import exceptions

from logweir.backends import closing, failpoint, journal, logins, migrations
from logweir.backends.control import Pipeline, Tenant
from logweir.core import errors, keys, names
from logweir.core.names import LoginKind, TenantId

OPERATOR: Final = "logweir_operator"
QUERY: Final = "logweir_query"
KEEPER: Final = "logweir_keeper"
AUTH: Final = "logweir_auth"
JOURNAL_AUTH: Final = "lw_auth"
"""The user of the role `auth` in the journal, where it may write revocations and nothing else."""

DATABASE: Final = "logweir"

SCRAM_ITERATIONS: Final = 4096
"""PostgreSQL's own default; more would only slow logins down, as no password can be guessed."""

MARKER_SECONDS: Final = 3600
MARKER_BUCKETS: Final = 4
MARKER_SHARDS: Final = 4096
"""Markers live for an hour in hashes small enough to stay packed; see journal.lua."""

_SETTINGS: Final[Mapping[LoginKind, Mapping[str, str]]] = {
    # A collector that froze in its transaction must not keep others from the block for longer.
    "w": {
        "statement_timeout": "30s",
        "lock_timeout": "10s",
        "idle_in_transaction_session_timeout": "30s",
    },
    "r": {"statement_timeout": "120s", "default_transaction_read_only": "on"},
    "k": {
        "statement_timeout": "300s",
        "lock_timeout": "2s",
        "idle_in_transaction_session_timeout": "120s",
    },
}


class Roots(msgspec.Struct, frozen=True):
    """One version of the root keys that the operator holds."""

    write: bytes
    maintain: bytes
    read: bytes
    sign: bytes

    def of(self, kind: LoginKind) -> bytes:
        """The root from which the passwords of a kind of login are derived."""
        return {"w": self.write, "r": self.read, "k": self.maintain}[kind]


class Limits(msgspec.Struct, frozen=True):
    """What a tenant may use; None is unlimited."""

    buffer_bytes: int
    records_per_second: int | None = None
    bytes_per_second: int | None = None
    connection_limit: int = 40


_SLOTTED: Final = (QUERY, KEEPER, AUTH)


def platform_login(login: str, root_version: int) -> str:
    """Return the login whose password comes from this version of the roots.

    The roles have two in PostgreSQL, so that the next one can be opened before they know of it.
    """
    return login + "_b" if login in _SLOTTED and root_version % 2 == 0 else login


def platform_password(roots: Roots, login: str) -> str:
    """Return the password of a platform login, in either slot."""
    # Other roles hold the sign root too, so the logins of `auth` come from one that none has.
    root = {
        OPERATOR: roots.write,
        QUERY: roots.read,
        KEEPER: roots.maintain,
        AUTH: roots.write,
        JOURNAL_AUTH: roots.write,
    }[login]
    return keys.password(root, keys.PLATFORM, login, 1)


def tenant_password(roots: Roots, tenant: Tenant, kind: LoginKind) -> tuple[str, str]:
    """Return the login that a tenant uses now, and its password."""
    slot, revision = {
        "w": (tenant.writer_slot, tenant.writer_revision),
        "r": (tenant.reader_slot, tenant.reader_revision),
        "k": (tenant.keeper_slot, tenant.keeper_revision),
    }[kind]
    login = names.login(tenant.id, kind, "b" if slot == "b" else "a")
    return login, keys.password(roots.of(kind), tenant.id, login, revision)


def journal_password(roots: Roots, tenant: Tenant, user: str) -> str:
    """Return the password of one of a tenant's Redis users."""
    kind = user.rsplit(".", 1)[-1]
    root = roots.read if kind == "tail" else roots.write
    return keys.password(root, tenant.id, user, tenant.redis_revision)


def bootstrap_store(superuser: str, roots: Roots, root_version: int = 1) -> None:
    """Make the platform's logins, its database and the control schema.

    Args:
        superuser: libpq's connection string of a superuser, or of a login with CREATEROLE and
            CREATEDB, on any database. CREATEDB is not needed where the operator's login and the
            database, which must be its own, were made beforehand.
        roots: the root keys that the platform uses.
        root_version: their version.
    """
    with psycopg.connect(superuser, autocommit=True) as connection:
        operator = platform_password(roots, OPERATOR)
        _ensure_login(connection, OPERATOR, operator, "CREATEROLE")
        _join_operator(connection)
        for login in _SLOTTED:
            _ensure_platform_slots(connection, login)
        _open_platform_logins(connection, roots, root_version)
        # One that froze while it changes a tenant's keys must not keep the operator from them.
        for slot in (platform_login(AUTH, 1), platform_login(AUTH, 2)):
            connection.execute(
                sql.SQL("alter role {} set idle_in_transaction_session_timeout = '5s'").format(
                    sql.Identifier(slot)
                )
            )
        exists = connection.execute(
            "select 1 from pg_database where datname = %s", [DATABASE]
        ).fetchone()
        if not exists:
            connection.execute(
                sql.SQL("create database {} owner {} template template0 encoding 'UTF8'").format(
                    sql.Identifier(DATABASE), sql.Identifier(OPERATOR)
                )
            )
    closing.close_functions(superuser, DATABASE, (OPERATOR, KEEPER, AUTH))


def _join_operator(connection: psycopg.Connection[Any]) -> None:
    """Let who is no superuser give a database to the operator's login, and connect to it later."""
    is_member = connection.execute("select pg_has_role(%s, 'usage')", [OPERATOR]).fetchone()
    if is_member == (True,):  # as a superuser is, of every role
        return
    is_new = connection.info.server_version >= 160000
    how = " with inherit true, set true" if is_new else ""
    connection.execute(sql.SQL("grant {} to current_user" + how).format(sql.Identifier(OPERATOR)))


def _ensure_platform_slots(connection: psycopg.Connection[Any], login: str) -> None:
    """Make both logins of a platform role, which the operator may open and close from then on.

    The grants of the control schema are to the first one; the other inherits them.
    """
    is_new = connection.info.server_version >= 160000
    may_open = "admin true, inherit false, set false" if is_new else "admin option"
    for slot in (platform_login(login, 1), platform_login(login, 2)):
        if not connection.execute("select 1 from pg_roles where rolname = %s", [slot]).fetchone():
            connection.execute(sql.SQL("create role {} nologin").format(sql.Identifier(slot)))
        connection.execute(
            sql.SQL("grant {} to {} with " + may_open).format(
                sql.Identifier(slot), sql.Identifier(OPERATOR)
            )
        )
    connection.execute(
        sql.SQL("grant {} to {}").format(
            sql.Identifier(login), sql.Identifier(platform_login(login, 2))
        )
    )


def _open_platform_logins(
    connection: psycopg.Connection[Any], roots: Roots, root_version: int
) -> None:
    for login in _SLOTTED:
        slot = platform_login(login, root_version)
        _ensure_login(connection, slot, platform_password(roots, login), "")


def use_roots(operator: str, roots: Roots, root_version: int) -> None:
    """Open the platform's logins of a version of the roots; those of the one before stay open,
    but for the operator's own, whose password is another from now on."""
    with psycopg.connect(operator, autocommit=True) as connection:
        _open_platform_logins(connection, roots, root_version)
        connection.execute(
            sql.SQL("alter role {} password {}").format(
                sql.Identifier(OPERATOR),
                sql.Literal(scram_verifier(platform_password(roots, OPERATOR))),
            )
        )


def close_platform_logins(operator: str, root_version: int) -> None:
    """Close the platform's logins of the version before this one."""
    with psycopg.connect(operator, autocommit=True) as connection:
        before = [platform_login(login, root_version - 1) for login in _SLOTTED]
        logins.close_logins(connection, before)


def upgrade_control(operator: str) -> None:
    """Bring the control schema to the newest revision, as the operator's login."""
    with psycopg.connect(operator, autocommit=True) as connection:
        connection.execute("create schema if not exists logweir")
        connection.execute("revoke all on schema public from public")
    closing.close_database(operator, DATABASE, (QUERY, KEEPER, AUTH))
    migrations.upgrade(operator, "control", names.CONTROL_SCHEMA)
    with psycopg.connect(operator, autocommit=True) as connection:
        # They wait at their start until it is of the version that they need.
        connection.execute(
            sql.SQL("grant select on logweir.alembic_version to {}").format(
                sql.SQL(", ").join(map(sql.Identifier, _SLOTTED))
            )
        )


def _ensure_login(
    connection: psycopg.Connection[Any], login: str, password: str, options: str
) -> None:
    """Make a login, or set its options and its password again."""
    exists = connection.execute("select 1 from pg_roles where rolname = %s", [login]).fetchone()
    verb = "alter role {}" if exists else "create role {}"
    connection.execute(
        sql.SQL(verb + " login " + options + " password {}").format(
            sql.Identifier(login), sql.Literal(scram_verifier(password))
        )
    )


def scram_verifier(password: str) -> str:
    """Return what PostgreSQL keeps of a derived password (RFC 5803), always the same.

    The salt comes from the password: a password of 256 bits needs none, and a catalog in which
    nothing changes when all is well can be compared.
    """
    salt = hmac.digest(password.encode(), b"scram salt", "sha256")[:16]
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, SCRAM_ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    text = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return "SCRAM-SHA-256${}:{}${}:{}".format(SCRAM_ITERATIONS, *text)


def provision_store(operator: str, tenant: Tenant, roots: Roots, limits: Limits) -> None:
    """Make a tenant's schema, its logins with their grants, and its first partitions.

    While no rotation overlaps, the logins of the other slots are closed.

    Args:
        operator: connection string of the platform's operator login.
        tenant: the tenant's row.
        roots: the root keys of the row's version.
        limits: of the tenant.
    """
    schema = names.schema(tenant.id)
    with psycopg.connect(operator, autocommit=True) as connection:
        _ensure_owner(connection, tenant.id)
        connection.execute(
            sql.SQL("create schema if not exists {} authorization {}").format(
                sql.Identifier(schema), sql.Identifier(names.owner(tenant.id))
            )
        )
    migrations.upgrade(operator, "tenant", schema, tenant=tenant.id)
    failpoint.reach("operator.mid_schema")
    with psycopg.connect(operator, autocommit=True) as connection:
        _hand_over(connection, tenant.id)
        for kind in _SETTINGS:
            _provision_login(connection, tenant, roots, kind, limits)
        if tenant.rotation == "steady":
            logins.close_logins(connection, logins.idle_logins(tenant))
        connection.execute(
            sql.SQL(
                "with changed as (update {0}.settings set retention_days = %(days)s,"
                " retention_bytes = %(bytes)s where (retention_days, retention_bytes)"
                " is distinct from (%(days)s, %(bytes)s::int8) returning 1)"
                # What was to go by other rules is to be decided again.
                " update {0}.storage set leaving_until = null where exists (select from changed)"
            ).format(sql.Identifier(schema)),
            {"days": tenant.retention_days, "bytes": tenant.retention_bytes},
        )
        connection.execute(
            sql.SQL(
                "select {}.ensure_partition((extract(epoch from clock_timestamp()) * 1e9)::int8)"
            ).format(sql.Identifier(schema))
        )


def open_logins(operator: str, tenant: Tenant, roots: Roots, limits: Limits) -> None:
    """Make the logins that a row names good, for a tenant that is provisioned; close none."""
    with psycopg.connect(operator, autocommit=True) as connection:
        for kind in _SETTINGS:
            _provision_login(connection, tenant, roots, kind, limits)


def close_idle_logins(operator: str, tenant: Tenant) -> None:
    """Lock out the logins that a row does not name, and end their sessions."""
    with psycopg.connect(operator, autocommit=True) as connection:
        logins.close_logins(connection, logins.idle_logins(tenant))


def _provision_login(
    connection: psycopg.Connection[Any],
    tenant: Tenant,
    roots: Roots,
    kind: LoginKind,
    limits: Limits,
) -> None:
    login, password = tenant_password(roots, tenant, kind)
    _ensure_login(connection, login, password, f"connection limit {limits.connection_limit}")
    closing.admit(connection, login, closing.TENANTS)
    who = sql.Identifier(login)
    schema = sql.Identifier(names.schema(tenant.id))
    for name, value in _SETTINGS[kind].items():
        connection.execute(
            sql.SQL("alter role {} set {} = {}").format(
                who, sql.Identifier(name), sql.Literal(value)
            )
        )
    connection.execute(sql.SQL("alter role {} set search_path = {}").format(who, schema))
    for grant in _GRANTS[kind]:
        connection.execute(sql.SQL(grant).format(schema=schema, who=who))


_GRANTS: Final[Mapping[LoginKind, Sequence[str]]] = {
    "w": (
        "grant usage on schema {schema} to {who}",
        "grant insert on {schema}.segments, {schema}.quarantine, {schema}.usage,"
        " {schema}.ledger, {schema}.producers to {who}",
        "grant select, update on {schema}.ledger, {schema}.producers to {who}",
        "grant execute on function {schema}.ensure_partition(int8) to {who}",
    ),
    "r": (
        "grant usage on schema {schema} to {who}",
        "grant select on {schema}.segments, {schema}.ledger, {schema}.quarantine,"
        " {schema}.usage, {schema}.settings, {schema}.storage to {who}",
    ),
    "k": (
        "grant usage on schema {schema} to {who}",
        # By name: what a partition or Alembic's table may be used for is nobody's to say.
        "grant select, insert, update, delete on {schema}.segments, {schema}.ledger,"
        " {schema}.producers, {schema}.quarantine, {schema}.usage to {who}",
        # How long records are kept is the operator's to say, also to who deletes them.
        "revoke insert, update, delete on {schema}.settings from {who}",
        "grant select, update (partition_width) on {schema}.settings to {who}",
        "grant select, update (stored_bytes, oldest_ns, next_drop_ns) on {schema}.storage to {who}",
        "grant execute on function {schema}.ensure_partition(int8), {schema}.drop_partition(int8),"
        " {schema}.change_usage(int4, int8), {schema}.correct_usage() to {who}",
    ),
}


def _ensure_owner(connection: psycopg.Connection[Any], tenant: TenantId) -> None:
    """Make the role that owns the schema. It cannot log in; the operator's login inherits it."""
    owner = names.owner(tenant)
    exists = connection.execute("select 1 from pg_roles where rolname = %s", [owner]).fetchone()
    if not exists:
        connection.execute(sql.SQL("create role {} nologin").format(sql.Identifier(owner)))
    closing.admit(connection, owner, closing.OWNERS)
    how = " with inherit true, set true" if connection.info.server_version >= 160000 else ""
    connection.execute(
        sql.SQL("grant {} to {}" + how).format(sql.Identifier(owner), sql.Identifier(OPERATOR))
    )


def _hand_over(connection: psycopg.Connection[Any], tenant: TenantId) -> None:
    """Give all that migrations made to the owner: its functions run with no more rights."""
    schema, owner = names.schema(tenant), names.owner(tenant)
    relations = connection.execute(
        "select 'table', c.oid::regclass::text from pg_class c"
        " where c.relnamespace = %(schema)s::regnamespace and c.relkind in ('r', 'p')"
        " and pg_get_userbyid(c.relowner) <> %(owner)s"
        " union all select 'function', p.oid::regprocedure::text from pg_proc p"
        " where p.pronamespace = %(schema)s::regnamespace"
        " and pg_get_userbyid(p.proowner) <> %(owner)s",
        {"schema": schema, "owner": owner},
    ).fetchall()
    # The names come from the catalog, quoted by it.
    for kind, name in relations:
        text = f"alter {kind} {name} owner to {{}}"
        connection.execute(sql.SQL(text).format(sql.Identifier(owner)))


async def bootstrap_journal(operator: redis.Redis) -> None:
    """Load the function library when another version, or none, is there; see to its replay."""
    try:
        found = await operator.fcall("lw_version", 0)
    except exceptions.ResponseError:
        found = b""
    if found != journal.LIBRARY_VERSION.encode():
        await operator.function_load(journal.library(), replace=True)
    if await _is_off(operator, "default") and not await _can_replay(operator):
        # Nobody can be a user that is off, so its rights open nothing.
        await journal.command(operator, "ACL", "SETUSER", "default", *_REPLAY_RULES)
        await save_acl(operator)


async def bootstrap_auth_user(
    operator: redis.Redis, roots: Roots, old_roots: Roots | None = None
) -> None:
    """Make the user of the role `auth`, or set its password and its rights again.

    With `old_roots` the password that came from those stays good.
    """
    digests = [_digest(platform_password(one, JOURNAL_AUTH)) for one in (roots, old_roots) if one]
    await journal.command(
        operator, "ACL", "SETUSER", JOURNAL_AUTH, "reset", "on", *digests, *_AUTH_RULES
    )
    await save_acl(operator)


async def tenants_without_users(
    operator: redis.Redis, tenants: Iterable[TenantId]
) -> set[TenantId]:
    """Return which of these tenants lack one of their users: a server without an ACL file forgets
    all of them when it is started again."""
    found = await journal.answer_of(operator.acl_users())
    known = {one.decode() if isinstance(one, bytes) else one for one in found}
    return {
        tenant
        for tenant in tenants
        if not known.issuperset(names.redis_user(tenant, kind) for kind in ("in", "col", "tail"))
    }


def _digest(password: str) -> str:
    """The ACL rule of a password."""
    return "#" + hashlib.sha256(password.encode()).hexdigest()


async def _is_off(operator: redis.Redis, user: str) -> bool:
    found = await journal.answer_of(operator.acl_getuser(user))
    return not found["enabled"]


async def _can_replay(operator: redis.Redis) -> bool:
    """Whether a restart brings back what the functions wrote.

    The server writes it as transactions, and many versions (Redis 7.0 is one) replay them with
    the rights of the user `default`: without them a restart drops every block, in silence.
    """
    key = names.journal_tenant(TenantId("any")) + "1:q"
    answers = [
        await journal.command(operator, "ACL", "DRYRUN", "default", name, key, *rest)
        for name, *rest in _REPLAYED
    ]
    return all(answer == b"OK" for answer in answers)


async def provision_journal(
    operator: redis.Redis,
    tenant: Tenant,
    pipelines: Sequence[Pipeline],
    roots: Roots,
    limits: Limits,
    old_roots: Roots | None = None,
) -> None:
    """Make a tenant's Redis users (`set_users`), its limits, and the streams of its pipelines."""
    prefix = names.journal_tenant(tenant.id)
    await set_users(operator, tenant, roots, old_roots)
    await _set(
        operator,
        prefix + "m",
        {
            "state": tenant.state,
            "max_bytes": limits.buffer_bytes,
            "rps": limits.records_per_second or "",
            "bps": limits.bytes_per_second or "",
            "burst_s": 2,
        },
    )
    for pipeline in pipelines:
        own = names.journal_pipeline(tenant.id, pipeline.id)
        try:
            await operator.xgroup_create(own + "q", names.CONSUMER_GROUP, "0", mkstream=True)
        except exceptions.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        await _set(
            operator,
            own + "m",
            {
                "state": "active",
                "bw": MARKER_SECONDS // (MARKER_BUCKETS - 1),
                "nb": MARKER_BUCKETS,
                "shards": MARKER_SHARDS,
            },
        )


async def set_users(
    operator: redis.Redis, tenant: Tenant, roots: Roots, old_roots: Roots | None = None
) -> None:
    """Make a tenant's Redis users, with the password of now; in a rotation also with the old one.

    A user is changed by one command, so no command of its open connections is ever refused.

    Args:
        operator: a client with the operator's login.
        tenant: the tenant's row.
        roots: of the row's version.
        old_roots: of the version before the rotation; None when the roots did not change.
    """
    before = msgspec.structs.replace(tenant, redis_revision=tenant.redis_revision - 1)
    for kind, rules in acl_rules(tenant.id).items():
        user = names.redis_user(tenant.id, kind)
        secrets = [journal_password(roots, tenant, user)]
        if tenant.rotation != "steady":
            secrets.append(journal_password(old_roots or roots, before, user))
        digests = [_digest(one) for one in secrets]
        await journal.command(operator, "ACL", "SETUSER", user, "reset", "on", *digests, *rules)
    await save_acl(operator)


async def set_stored(operator: redis.Redis, tenant: TenantId, *, is_over: bool) -> None:
    """Tell a tenant's journal whether more is stored than may be: then it takes nothing."""
    await _set(operator, names.journal_tenant(tenant) + "m", {"stored": "over" if is_over else ""})


async def _set(operator: redis.Redis, key: str, values: Mapping[str, object]) -> None:
    await operator.hset(key, mapping={k: str(v) for k, v in values.items()})


async def save_acl(operator: redis.Redis) -> None:
    """Users live in the server's memory until they are saved to its aclfile."""
    try:
        await journal.command(operator, "ACL", "SAVE")
    except exceptions.ResponseError as error:
        if "not configured to use an ACL file" not in str(error):
            raise


def acl_rules(tenant: TenantId) -> dict[Literal["in", "col", "tail"], list[str]]:
    """Return the ACL rules of a tenant's users: keys, channels and commands, by allow-list."""
    p = names.journal_tenant(tenant)
    base = ["resetkeys", "resetchannels", "-@all", "+ping", "+client|setname"]
    return {
        "in": [
            *base,
            *(f"~{p}*:q", f"~{p}*:i:*", f"~{p}*:c", f"~{p}c"),
            *(f"%R~{p}*:m", f"%R~{p}m", f"%R~{p}cfg", f"%R~{p}*:t", f"&{p}*:l"),
            *("+fcall|lw_append", "+time", "+hmget", "+hgetall", "+hget", "+hset", "+hlen"),
            *("+expire", "+exists", "+xadd", "+hincrby", "+publish", "+wait"),
        ],
        "col": [
            *base,
            *(f"~{p}*:q", f"~{p}*:c", f"~{p}c"),
            *("+fcall|lw_ack", "+xack", "+xdel", "+hincrby", "+xreadgroup", "+xautoclaim"),
            *("+xpending", "+xrange", "+xlen", "+wait"),
        ],
        "tail": [
            *base,
            *(f"%R~{p}*:q", f"%R~{p}*:c", f"%W~{p}*:t", f"%W~{p}k:*", f"&{p}*:l"),
            *("+set", "+xrange", "+xrevrange", "+hmget", "+subscribe", "+unsubscribe"),
        ],
    }


_AUTH_RULES: Final = (
    *("~{s*}:t_*:cfg", "resetchannels", "-@all", "+hset", "+hdel", "+ping", "+client|setname"),
)


async def publish_revocations(
    client: redis.Redis, tenant: TenantId, key_ids: Sequence[int], ends: Mapping[int, int] = {}
) -> None:
    """Tell the tenant's ingest which keys are revoked.

    Each has a field of its own, which nobody writes over, so operator and auth may do this at the
    same time, in any order, with what each has read before.

    Args:
        client: as the operator or auth.
        tenant: whose keys.
        key_ids: of those that are revoked.
        ends: when others end, in seconds since the epoch.
    """
    fields = {
        **{journal.REVOKED + str(key_id): "1" for key_id in key_ids},
        **{journal.ENDS + str(key_id): at_s for key_id, at_s in ends.items()},
        journal.TOLD: time.time_ns(),
    }
    await _set(client, names.journal_tenant(tenant) + "cfg", fields)


async def forget_revocations(client: redis.Redis, tenant: TenantId, key_ids: Sequence[int]) -> None:
    """Tell the tenant's ingest nothing more of keys, whose texts must have expired."""
    fields = [kind + str(key_id) for key_id in key_ids for kind in (journal.REVOKED, journal.ENDS)]
    if fields:
        await journal.answer_of(client.hdel(names.journal_tenant(tenant) + "cfg", *fields))


_JOURNAL_SETTINGS: Final = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
    "aof-load-truncated": "yes",
}
_REPLAYED: Final = (
    ("XADD", "*", "b", "x"),
    ("XACK", names.CONSUMER_GROUP, "1-1"),
    ("XDEL", "1-1"),
    ("HSET", "a", "b"),
    ("HINCRBY", "a", 1),
    ("PEXPIREAT", 1),
)
_REPLAY_RULES: Final = ("~*", "&*", "+@all")
_STORE_SETTINGS: Final = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


async def journal_problems(operator: redis.Redis) -> list[str]:
    """Return each setting of the Redis server that would break the promise, with its fix."""
    found = await operator.config_get(*_JOURNAL_SETTINGS)
    problems = [
        f"The journal has {name} {found.get(name)!r}; an acknowledged record needs {wanted!r}."
        f" Set it by CONFIG SET {name} {wanted} and in the server's configuration."
        for name, wanted in _JOURNAL_SETTINGS.items()
        if found.get(name) != wanted
    ]
    if not await _can_replay(operator):
        problems.append(
            "The journal's user 'default' may not write, and a restart replays the journal as it:"
            f" every block would be dropped. Run ACL SETUSER default off {' '.join(_REPLAY_RULES)}."
        )
    return problems


def store_problems(conninfo: str) -> list[str]:
    """Return each setting of the PostgreSQL server that would break the promise, with its fix."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        rows = connection.execute(
            "select name, setting from pg_settings where name = any(%s)", [list(_STORE_SETTINGS)]
        ).fetchall()
    return [
        f"The store has {name} {setting!r}; a stored record needs {_STORE_SETTINGS[name]!r}."
        f" Set it in postgresql.conf and reload."
        for name, setting in rows
        if setting not in (_STORE_SETTINGS[name], "remote_write", "remote_apply")
    ]


def check(problems: Sequence[str]) -> None:
    """Raise SetupError when there is any problem."""
    if problems:
        raise errors.SetupError(" ".join(problems))
