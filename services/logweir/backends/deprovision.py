"""Takes away what `provision.py` made; every step may run again, in the order that harms nobody.

close_pipeline    appends to a pipeline are refused (403), what is in its journal still drains
close_journal     the same for all of a tenant
close_store       the tenant's logins are locked out
drop_pipeline     a drained stream with all that belongs to it
drop_journal      the tenant's Redis users and keys
drop_store        the tenant's schema, logins and owner
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import psycopg
from psycopg import sql
from redis import asyncio as redis

from logweir.backends import journal, logins
from logweir.core import names
from logweir.core.names import PipelineId, TenantId

_SCAN_COUNT: Final = 500


async def close_pipeline(operator: redis.Redis, tenant: TenantId, pipeline: PipelineId) -> None:
    """Refuse all further appends to a pipeline."""
    own = names.journal_pipeline(tenant, pipeline)
    await journal.command(operator, "HSET", own + "m", "state", "deleting")


async def close_journal(operator: redis.Redis, tenant: TenantId) -> None:
    """Refuse all further appends of a tenant."""
    await journal.command(operator, "HSET", names.journal_tenant(tenant) + "m", "state", "deleting")


async def backlog(operator: redis.Redis, tenant: TenantId, pipelines: Sequence[PipelineId]) -> int:
    """Return how many blocks these pipelines' journals still hold."""
    sizes = [
        int(await journal.command(operator, "XLEN", names.journal_pipeline(tenant, one) + "q"))
        for one in pipelines
    ]
    return sum(sizes)


async def drop_pipeline(operator: redis.Redis, tenant: TenantId, pipeline: PipelineId) -> None:
    """Remove a pipeline's keys from the journal; its stream must be drained."""
    await _unlink(operator, names.journal_pipeline(tenant, pipeline))


async def drop_journal(operator: redis.Redis, tenant: TenantId) -> None:
    """Remove a tenant's users and keys from the journal."""
    users = [names.redis_user(tenant, kind) for kind in ("in", "col", "tail")]
    await journal.command(operator, "ACL", "DELUSER", *users)
    await journal.command(operator, "ACL", "SAVE")
    await _unlink(operator, names.journal_tenant(tenant))


async def _unlink(operator: redis.Redis, prefix: str) -> None:
    pattern = prefix + "*"
    async for key in operator.scan_iter(match=pattern, count=_SCAN_COUNT):
        await journal.command(operator, "UNLINK", key)


def close_store(operator: str, tenant: TenantId) -> None:
    """Lock a tenant's logins out, and end what they do. Provisioning lets them in again."""
    with psycopg.connect(operator, autocommit=True) as connection:
        logins.close_logins(connection, _logins(tenant))


def drop_store(operator: str, tenant: TenantId) -> None:
    """Remove the schema and the roles of a tenant whose store is closed.

    Partitions go one by one: a single DROP of thousands would not find locks enough.
    """
    schema, owner = names.schema(tenant), names.owner(tenant)
    with psycopg.connect(operator, autocommit=True) as connection:
        rows = connection.execute(
            "select c.relname from pg_class c where c.relnamespace = to_regnamespace(%s)"
            " and c.relispartition and c.relkind = 'r'",
            [sql.Identifier(schema).as_string(connection)],
        ).fetchall()
        for (partition,) in rows:
            connection.execute(
                sql.SQL("drop table if exists {}").format(sql.Identifier(schema, partition))
            )
        connection.execute(
            sql.SQL("drop schema if exists {} cascade").format(sql.Identifier(schema))
        )
        for role in [*_logins(tenant), owner]:
            _drop_role(connection, role)


def _logins(tenant: TenantId) -> list[str]:
    return [names.login(tenant, kind, slot) for kind in ("w", "r", "k") for slot in ("a", "b")]


def _role_exists(connection: psycopg.Connection[tuple[object, ...]], role: str) -> bool:
    found = connection.execute("select 1 from pg_roles where rolname = %s", [role])
    return found.fetchone() is not None


def _drop_role(connection: psycopg.Connection[tuple[object, ...]], role: str) -> None:
    if _role_exists(connection, role):
        connection.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))
