"""API keys that are made, rolled and revoked over the API, beside those of tenants' resources.

A key's name stands for a chain of generations: the newest one is in force without an end
(`revoked_at` is null), those before it end, or have ended, at their `revoked_at`.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
import psycopg

from logweir.backends.control import ApiKeyRow, Control
from logweir.core import access, errors, keys
from logweir.core.names import PipelineId, TenantId

MAX_KEYS: Final = 200
"""Keys of a tenant that are in force; each is read by every process that reads."""

MAX_ROWS: Final = 2000
"""Keys of a tenant that may not be forgotten: those, and revoked ones whose texts have not expired.
Ingest reads what is revoked of them every two seconds."""

KEPT_S: Final = 86_400
"""For how long a key that has expired is shown and remembered."""

_Connection = psycopg.AsyncConnection[dict[str, Any]]


class NewKey(msgspec.Struct, frozen=True):
    """A key that is to be made. `scopes` is a sum of keys.SCOPE_*, `maker` the id of the key that
    asks for it."""

    name: str
    pipeline: PipelineId
    scopes: int
    expires_at: datetime | None
    maker: int


class Kept(msgspec.Struct, frozen=True):
    """What is known of a tenant's keys that end: see `control.revocations`."""

    tenant: TenantId
    rows: list[ApiKeyRow]


class ApiKeys(Control):
    """The control schema's keys, as the role `auth` may change them."""

    async def pipeline_id(self, tenant: TenantId, name: str) -> PipelineId:
        """Return the id of a tenant's pipeline.

        Raises:
            BadRequestError: there is none of this name.
        """
        rows = await self._rows(
            "select id from logweir.pipelines"
            " where tenant = %s and name = %s and state <> 'deleted'",
            [tenant, name],
        )
        if not rows:
            raise errors.BadRequestError(f"There is no pipeline {name!r}.")
        return PipelineId(rows[0]["id"])

    async def create(self, tenant: TenantId, wanted: NewKey) -> ApiKeyRow:
        """Make a key.

        Raises:
            UnauthorizedError: the key that asks is not in force any more.
            ConflictError: the name is in use, or the tenant has too many keys.
        """
        async with self._changing_keys(tenant) as connection:
            await _check_maker(connection, wanted.maker)
            await _check_room(connection, tenant)
            # The name of one that has expired is free; a resource keeps its names.
            await connection.execute(
                "update logweir.api_keys set revoked_at = expires_at where tenant = %s"
                " and name = %s and origin = 'api' and revoked_at is null and expires_at <= now()",
                [tenant, wanted.name],
            )
            row = await _insert(connection, tenant, wanted)
        if row is None:
            raise errors.ConflictError(
                f"There is a key {wanted.name!r} already.",
                hint="Choose another name, roll that key, or revoke it first.",
            )
        return row

    async def roll(
        self,
        tenant: TenantId,
        name: str,
        maker: int,
        overlap_s: int,
        expires_at: datetime | msgspec.UnsetType | None,
    ) -> ApiKeyRow:
        """Make the next generation of a key; those before it end after an overlap at the latest.

        Args:
            tenant: whose key.
            name: of the key.
            maker: the id of the key that asks for it.
            overlap_s: for how long the generation of before is still good.
            expires_at: of the new one; unset: it lives as long as the one before was to live.

        Raises:
            UnauthorizedError: the key that asks is not in force any more.
            NotFoundError: there is no key of this name, or it was revoked.
            ConflictError: it is a resource's, or the tenant has too many keys.
        """
        async with self._changing_keys(tenant) as connection:
            await _check_maker(connection, maker)
            before = await _newest(connection, tenant, name)
            await _check_room(connection, tenant)
            await connection.execute(
                "update logweir.api_keys"
                " set revoked_at = least(revoked_at, now() + make_interval(secs => %s))"
                " where tenant = %s and name = %s and origin = 'api'"
                " and (revoked_at is null or revoked_at > now())",
                [overlap_s, tenant, name],
            )
            if expires_at is msgspec.UNSET:
                life = before.expires_at - before.created_at if before.expires_at else None
                expires_at = await _now(connection) + life if life else None
            wanted = NewKey(name, before.pipeline, before.scopes, expires_at, maker)
            row = await _insert(connection, tenant, wanted, before.generation + 1)
        if row is None:
            raise errors.UnavailableError("Somebody else changed this key; ask again.")
        return row

    async def revoke(self, tenant: TenantId, name: str, maker: int) -> None:
        """Revoke all generations of a key; what was revoked before stays so.

        Args:
            tenant: whose key.
            name: of the key.
            maker: the id of the key that asks for it.

        Raises:
            UnauthorizedError: the key that asks is not in force any more.
            NotFoundError: there never was a key of this name.
            ConflictError: it is a resource's.
        """
        async with self._changing_keys(tenant) as connection:
            await _check_maker(connection, maker)
            cursor = await connection.execute(
                "select origin, revoked_at is null as is_open from logweir.api_keys"
                " where tenant = %s and name = %s",
                [tenant, name],
            )
            found = await cursor.fetchall()
            if not found:
                raise no_such_key(name)
            if any(one["origin"] == "resource" and one["is_open"] for one in found):
                raise _of_resource(name)
            await connection.execute(
                "update logweir.api_keys set revoked_at = now() where tenant = %s and name = %s"
                " and origin = 'api' and (revoked_at is null or revoked_at > now())",
                [tenant, name],
            )

    async def kept(self) -> list[Kept]:
        """Return all keys that are revoked or will be, of each tenant whose journal is there."""
        tenants = await self._rows(
            "select id from logweir.tenants where state in ('active', 'readonly')"
        )
        rows = await self._rows(
            "select *, revoked_at <= now() as is_revoked from logweir.api_keys"
            " where revoked_at is not null and tenant in (select id from logweir.tenants"
            " where state in ('active', 'readonly'))"
        )
        found: dict[TenantId, list[ApiKeyRow]] = {row["id"]: [] for row in tenants}
        for row in msgspec.convert(rows, list[ApiKeyRow]):
            found.setdefault(row.tenant, []).append(row)
        return [Kept(*one) for one in found.items()]

    async def outlived(self) -> list[tuple[TenantId, int]]:
        """Return keys that need not be remembered: their texts have expired long ago.

        A key of a resource that was not revoked stays, as the resource would make it anew.
        """
        rows = await self._rows(
            "select tenant, id from logweir.api_keys"
            " where expires_at < now() - make_interval(secs => %s)"
            " and (origin = 'api' or revoked_at is not null)",
            [KEPT_S],
        )
        return [(row["tenant"], row["id"]) for row in rows]

    async def forget(self, key_ids: Sequence[int]) -> None:
        """Delete keys whose texts have expired, and no other."""
        await self._rows(
            "delete from logweir.api_keys where id = any(%s) and expires_at < now()",
            [list(key_ids)],
        )


def no_such_key(name: str) -> errors.NotFoundError:
    """Return the error of a name that no key has."""
    return errors.NotFoundError(
        f"There is no key {name[:80]!r}.", hint="GET /api/v1/keys lists the keys that there are."
    )


def _of_resource(name: str) -> errors.ConflictError:
    return errors.ConflictError(
        f"The key {name!r} belongs to the tenant's LogTenant resource.",
        hint="Change spec.apiKeys there: 'generation' rolls it, 'enabled: false' revokes it.",
    )


async def _check_maker(connection: _Connection, maker: int) -> None:
    """See that the key that asks is in force at this moment: what the process knows of it may be
    some seconds old. A key that stands in no table is its folder's own (`standalone.admin`)."""
    cursor = await connection.execute(
        "select from logweir.api_keys where id = %s and (revoked_at <= clock_timestamp()"
        " or expires_at <= clock_timestamp())",
        [maker],
    )
    access.check_in_force(is_ended=await cursor.fetchone() is not None)


async def _check_room(connection: _Connection, tenant: TenantId) -> None:
    cursor = await connection.execute(
        "select count(*) as rows, count(*) filter (where (revoked_at is null or revoked_at > now())"
        " and (expires_at is null or expires_at > now())) as used"
        " from logweir.api_keys where tenant = %s",
        [tenant],
    )
    [found] = await cursor.fetchall()
    if found["used"] >= MAX_KEYS:
        raise errors.ConflictError(
            f"The tenant has {found['used']} keys in force, as many as may be.",
            hint="Revoke those that nobody uses.",
        )
    if found["rows"] >= MAX_ROWS:
        raise errors.ConflictError(
            f"The tenant has {found['rows']} keys that must be remembered, as many as may be.",
            hint="Revoked keys are remembered until they expire: give new ones an expiresAt.",
        )


async def _newest(connection: _Connection, tenant: TenantId, name: str) -> ApiKeyRow:
    cursor = await connection.execute(
        "select * from logweir.api_keys where tenant = %s and name = %s and revoked_at is null",
        [tenant, name],
    )
    row = await cursor.fetchone()
    if row is None:
        raise no_such_key(name)
    found = msgspec.convert(row, ApiKeyRow)
    if found.origin == "resource":
        raise _of_resource(name)
    return found


async def _now(connection: _Connection) -> datetime:
    [row] = await (await connection.execute("select now() as at")).fetchall()
    at: datetime = row["at"]
    return at


async def _insert(
    connection: _Connection, tenant: TenantId, wanted: NewKey, generation: int = 1
) -> ApiKeyRow | None:
    """Insert a key; None when its name is in use."""
    cursor = await connection.execute(
        "insert into logweir.api_keys (id, tenant, name, pipeline, scopes, revision, generation,"
        " expires_at, origin, created_by)"
        " select %s, id, %s, %s, %s, case when %s then ingest_revision else access_revision end,"
        " %s, %s, 'api', coalesce((select k.name from logweir.api_keys k"
        " where k.id = %s and k.tenant = t.id), '')"
        " from logweir.tenants t where id = %s"
        " on conflict (tenant, name) where revoked_at is null do nothing"
        " returning *",
        [
            secrets.randbits(63),
            wanted.name,
            wanted.pipeline,
            wanted.scopes,
            wanted.scopes == keys.SCOPE_INGEST,
            generation,
            wanted.expires_at,
            wanted.maker,
            tenant,
        ],
    )
    row = await cursor.fetchone()
    return msgspec.convert(row, ApiKeyRow) if row else None
