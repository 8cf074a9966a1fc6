"""Takes away what `provision.py` made; every step may run again, in the order that harms nobody.

close_pipeline    appends to a pipeline are refused (403), what is in its journal still drains
close_journal     the same for all of a tenant
left              what the journals of pipelines still hold
close_store       the tenant's logins are locked out, their sessions ended
drop_pipeline     a drained stream with all that belongs to it
drop_journal      the tenant's Redis users and keys
drop_partitions   the tenant's schema gets another name, and its partitions go one by one
drop_store        the rest of the schema, the logins and the owner
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import psycopg
from psycopg import sql
from redis import asyncio as redis
from redis import exceptions

from logweir.backends import journal, logins, provision
from logweir.core import names
from logweir.core.names import PipelineId, TenantId

_SCAN_COUNT: Final = 500

DROPS_AT_ONCE: Final = 100
"""Partitions that one call drops, each in some milliseconds: other tenants wait meanwhile."""

LOCK_TIMEOUT: Final = "2s"
"""Nobody but a backup holds locks there; who waited for it would hold up the other tenants."""


class Left(msgspec.Struct, frozen=True):
    """What journals hold: blocks, accepted records, and blocks that collectors have in hand."""

    blocks: int
    records: int
    pending: int


async def close_pipeline(operator: redis.Redis, tenant: TenantId, pipeline: PipelineId) -> None:
    """Refuse all further appends to a pipeline."""
    own = names.journal_pipeline(tenant, pipeline)
    await journal.command(operator, "HSET", own + "m", "state", "deleting")


async def close_journal(operator: redis.Redis, tenant: TenantId) -> None:
    """Refuse all further appends of a tenant."""
    await journal.command(operator, "HSET", names.journal_tenant(tenant) + "m", "state", "deleting")


async def left(operator: redis.Redis, tenant: TenantId, pipelines: Sequence[PipelineId]) -> Left:
    """Return what these pipelines' journals still hold."""
    blocks = records = pending = 0
    for own in (names.journal_pipeline(tenant, one) for one in pipelines):
        blocks += int(await journal.command(operator, "XLEN", own + "q"))
        records += int(await journal.command(operator, "HGET", own + "c", "inflight") or 0)
        pending += await _pending(operator, own + "q")
    return Left(blocks, records, pending)


async def _pending(operator: redis.Redis, stream: str) -> int:
    try:
        found = await operator.xpending(stream, names.CONSUMER_GROUP)
    except exceptions.ResponseError as error:
        if "NOGROUP" not in str(error):  # there is no such stream, or nobody was to read it
            raise
        return 0
    return int(found["pending"])


async def drop_pipeline(operator: redis.Redis, tenant: TenantId, pipeline: PipelineId) -> None:
    """Remove a pipeline's keys from the journal; its stream must be drained."""
    await _unlink(operator, names.journal_pipeline(tenant, pipeline))


async def drop_journal(operator: redis.Redis, tenant: TenantId) -> None:
    """Remove a tenant's users and keys from the journal."""
    users = [names.redis_user(tenant, kind) for kind in ("in", "col", "tail")]
    await journal.command(operator, "ACL", "DELUSER", *users)
    await provision.save_acl(operator)
    await _unlink(operator, names.journal_tenant(tenant))


async def _unlink(operator: redis.Redis, prefix: str) -> None:
    pattern = prefix + "*"
    async for key in operator.scan_iter(match=pattern, count=_SCAN_COUNT):
        await journal.command(operator, "UNLINK", key)


def close_store(operator: str, tenant: TenantId) -> int:
    """Lock a tenant's logins out, end what they do, and return how many sessions of theirs are
    left. Provisioning lets them in again."""
    with psycopg.connect(operator, autocommit=True) as connection:
        return logins.close_logins(connection, _logins(tenant))


def drop_partitions(operator: str, tenant: TenantId) -> int:
    """Rename the schema of a tenant whose store is closed, so that nothing finds it, and drop some
    of its partitions; return how many are left.

    They go one by one: a single DROP of thousands would not find locks enough.
    """
    schema, tombstone = names.schema(tenant), names.tombstone(tenant)
    with psycopg.connect(operator, autocommit=True) as connection:
        connection.execute(sql.SQL("set lock_timeout = {}").format(LOCK_TIMEOUT))
        if _schema_exists(connection, schema) and not _schema_exists(connection, tombstone):
            connection.execute(
                sql.SQL("alter schema {} rename to {}").format(
                    sql.Identifier(schema), sql.Identifier(tombstone)
                )
            )
        rows = connection.execute(
            "select c.relname from pg_class c join pg_namespace s on s.oid = c.relnamespace"
            " where s.nspname = %s and c.relispartition and c.relkind = 'r' order by 1",
            [tombstone],
        ).fetchall()
        for (partition,) in rows[:DROPS_AT_ONCE]:
            connection.execute(
                sql.SQL("drop table if exists {}").format(sql.Identifier(tombstone, partition))
            )
    return max(0, len(rows) - DROPS_AT_ONCE)


def drop_store(operator: str, tenant: TenantId) -> None:
    """Remove what is left of a tenant's schema, and its roles."""
    with psycopg.connect(operator, autocommit=True) as connection:
        connection.execute(sql.SQL("set lock_timeout = {}").format(LOCK_TIMEOUT))
        connection.execute(
            sql.SQL("drop schema if exists {} cascade").format(
                sql.Identifier(names.tombstone(tenant))
            )
        )
        for role in [*_logins(tenant), names.owner(tenant)]:
            _drop_role(connection, role)


def _schema_exists(connection: psycopg.Connection[tuple[object, ...]], schema: str) -> bool:
    found = connection.execute("select 1 from pg_namespace where nspname = %s", [schema])
    return found.fetchone() is not None


def _logins(tenant: TenantId) -> list[str]:
    return [names.login(tenant, kind, slot) for kind in ("w", "r", "k") for slot in ("a", "b")]


def _role_exists(connection: psycopg.Connection[tuple[object, ...]], role: str) -> bool:
    found = connection.execute("select 1 from pg_roles where rolname = %s", [role])
    return found.fetchone() is not None


def _drop_role(connection: psycopg.Connection[tuple[object, ...]], role: str) -> None:
    if _role_exists(connection, role):
        connection.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))
