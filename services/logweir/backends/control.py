"""The control schema: tenants, pipelines, API keys, the objects of `logweir up`, leases.

Ids, states and claims stand here in every way to run; nothing secret does. Operator, query and
keeper come with logins of their own, whose grants say what they may touch.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec
import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from logweir.backends import doors
from logweir.core import errors, keys, names, states
from logweir.core.names import PipelineId, TenantId
from logweir.core.states import TenantState

STATEMENT_TIMEOUT_S: Final = 10.0

_END: Final = (
    "update logweir.tenants set writer_revision = writer_revision + 1,"
    " reader_revision = reader_revision + 1, keeper_revision = keeper_revision + 1,"
    " redis_revision = redis_revision + 1, ingest_revision = ingest_revision + 2,"
    " access_revision = access_revision + 2, rotation = 'steady', overlap_until = null"
    " where id = %s"
)
"""What signs keys goes on by two: in a rotation ingest was told of the next one already."""


Phase = Literal["steady", "spreading", "overlapping"]
"""Of a rotation: one set of secrets is good; the new one is in use and the old one good, too, first
with the old signing revision, then with the new one (`logweir_operator.rotation`)."""


class Storage(msgspec.Struct, frozen=True):
    """What a tenant's store holds, as its keeper measures it: bytes of segments, the time of the
    oldest one, and when something goes by its age; nanoseconds since the epoch."""

    stored_bytes: int = 0
    oldest_ns: int | None = None
    next_drop_ns: int | None = None


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `tenants`: who it belongs to, its state, slots and revisions of its secrets.

    All passwords of now come from the roots of `root_version`, those from before the last rotation
    from `old_root_version`. `signed_since[v - 1]` is the first signing revision of root version v.
    `lost_blocks` and `lost_records` were in its journals when its deletion gave them up.
    """

    id: TenantId
    cluster: str
    namespace: str
    name: str
    state: str
    spec: dict[str, Any]
    retention_days: int
    writer_slot: str
    reader_slot: str
    keeper_slot: str
    writer_revision: int
    reader_revision: int
    keeper_revision: int
    redis_revision: int
    ingest_revision: int
    access_revision: int
    root_version: int = 1
    old_root_version: int = 1
    signed_since: tuple[int, ...] = (1,)
    rotation: Phase = "steady"
    rotated_at: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    overlap_until: datetime | None = None
    lost_blocks: int = 0
    lost_records: int = 0

    @property
    def retention_bytes(self) -> int | None:
        """Stored bytes over which the oldest records go; None: any number may stay."""
        found: int | None = (self.spec.get("retention") or {}).get("bytes")
        return found

    def is_over(self, storage: Storage) -> bool:
        """Whether as much is stored as quotas.storedBytes allows: then nothing more is taken."""
        most_bytes = (self.spec.get("quotas") or {}).get("storedBytes")
        return most_bytes is not None and storage.stored_bytes >= most_bytes


class Pipeline(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `pipelines`."""

    id: PipelineId
    tenant: TenantId
    name: str
    state: str
    spec: dict[str, Any]
    retention_days: int


Origin = Literal["resource", "api"]

_LATEST_S: Final = (1 << 32) - 1
"""A key's text has 32 bits for the moment at which it expires."""


class ApiKeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `api_keys`: all but the MAC, which is derived.

    `revoked_at` is when it ends, which may lie ahead; `is_revoked` says whether that is over, by
    the clock of the database.
    """

    id: int
    tenant: TenantId
    name: str
    pipeline: PipelineId
    scopes: int
    revision: int
    generation: int
    expires_at: datetime | None
    created_at: datetime
    revoked_at: datetime | None
    is_revoked: bool = False
    origin: Origin = "resource"
    created_by: str = ""

    def key(self) -> keys.ApiKey:
        """Return what the key's text says."""
        return keys.ApiKey(
            tenant=self.tenant,
            key_id=self.id,
            pipeline=self.pipeline,
            scopes=self.scopes,
            expires_at_s=_expires_at_s(self.expires_at),
            revision=self.revision,
        )


def _expires_at_s(at: datetime | None) -> int:
    return min(int(at.timestamp()), _LATEST_S) if at else 0


def revocations(rows: Iterable[ApiKeyRow]) -> tuple[list[int], dict[int, int]]:
    """Return what the journal is told of keys: the ids of those that are revoked; and of those
    that end later when they do, in seconds since the epoch."""
    revoked, ends = [], {}
    for one in rows:
        if one.is_revoked:
            revoked.append(one.id)
        elif one.revoked_at is not None:
            ends[one.id] = int(one.revoked_at.timestamp())
    return revoked, ends


class StoredObject(msgspec.Struct, frozen=True, kw_only=True):
    """A custom resource as `logweir up` keeps it, in place of an API server."""

    kind: str
    namespace: str
    name: str
    generation: int
    spec: dict[str, Any]
    source: str
    source_hash: str
    status: dict[str, Any]
    deleted_at: datetime | None
    created_at: datetime


class IdentityClaimedError(errors.LogweirError):
    """The tenant id belongs, or belonged, to another object."""

    code = "identity_claimed"
    status = 409


class TenantLeavingError(errors.LogweirError):
    """The object's tenant is still being deleted; later there is none, or one to adopt."""

    code = "leaving"
    status = 409


class TenantMovedError(errors.LogweirError):
    """Somebody else has changed the tenant's state meanwhile."""

    code = "moved"
    status = 409


class ObjectLeavingError(errors.LogweirError):
    """An object is being deleted, and cannot be changed any more."""

    code = "leaving"
    status = 409


class Control:
    """The control schema, over one connection that is opened again when it breaks."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._connection: psycopg.AsyncConnection[dict[str, Any]] | None = None
        self._lock = asyncio.Lock()

    def use(self, conninfo: str) -> None:
        """Connect as another login from now on; the connection that is open stays."""
        self._conninfo = conninfo

    @contextlib.asynccontextmanager
    async def _door(self) -> AsyncIterator[psycopg.AsyncConnection[dict[str, Any]]]:
        async with self._lock:
            try:
                async with asyncio.timeout(STATEMENT_TIMEOUT_S):
                    if self._connection is None or self._connection.closed:
                        self._connection = await psycopg.AsyncConnection.connect(
                            self._conninfo, autocommit=True, row_factory=dict_row
                        )
                    yield self._connection
            except (psycopg.Error, OSError, TimeoutError) as cause:
                connection, self._connection = self._connection, None
                if connection is not None:
                    with contextlib.suppress(psycopg.Error, OSError):
                        await connection.close()
                reason = doors.reason_of(cause).rstrip(".")
                raise errors.UnavailableError(
                    f"The control schema did not answer: {reason}."
                ) from cause

    async def close(self) -> None:
        """Close the connection."""
        async with self._lock:
            if self._connection is not None:
                await self._connection.close()
                self._connection = None

    async def _rows(
        self, query: str, values: Sequence[object] | Mapping[str, object] = ()
    ) -> list[dict[str, Any]]:
        async with self._door() as connection:
            cursor = await connection.execute(query.encode(), values)
            return await cursor.fetchall() if cursor.description else []

    async def tenants(self) -> list[Tenant]:
        """Return all tenants that are not deleted.

        Raises:
            UnavailableError: the control schema did not answer (so do all methods here).
        """
        rows = await self._rows("select * from logweir.tenants where state <> 'deleted'")
        return msgspec.convert(rows, list[Tenant])

    async def pipelines(self, *, with_deleted: bool = False) -> list[Pipeline]:
        """Return all pipelines; those that are deleted only for who reads what they have left."""
        rows = await self._rows(
            "select * from logweir.pipelines where state <> 'deleted' or %s order by id",
            [with_deleted],
        )
        return msgspec.convert(rows, list[Pipeline])

    async def api_keys(self) -> list[ApiKeyRow]:
        """Return all API keys; a revoked one too, for as long as its text could be good."""
        rows = await self._rows(
            "select *, coalesce(revoked_at <= now(), false) as is_revoked from logweir.api_keys"
        )
        return msgspec.convert(rows, list[ApiKeyRow])

    async def api_keys_of(self, tenant: TenantId) -> list[ApiKeyRow]:
        """Return a tenant's API keys by name, the newest of each name first."""
        rows = await self._rows(
            "select *, coalesce(revoked_at <= now(), false) as is_revoked from logweir.api_keys"
            " where tenant = %s order by name, created_at desc, generation desc",
            [tenant],
        )
        return msgspec.convert(rows, list[ApiKeyRow])

    async def claim_tenant(
        self, tenant: TenantId, cluster: str, namespace: str, name: str
    ) -> Tenant:
        """Return the tenant of an object, claiming the id when the object has none yet.

        A tenant that was kept is its object's still, and waits for `adopt_tenant`.

        Raises:
            IdentityClaimedError: the id is or was another tenant's.
            TenantLeavingError: the object's tenant is still being deleted.
        """
        found = await self._tenant_of(cluster, namespace, name)
        if found is None:
            await self._rows(
                "insert into logweir.tenants (id, cluster, namespace, name)"
                " values (%s, %s, %s, %s) on conflict do nothing",
                [tenant, cluster, namespace, name],
            )
            await self._rows(
                "update logweir.tenants set state = 'provisioning', cluster = %s, namespace = %s,"
                " name = %s where id = %s and state = 'deleted' and cluster = ''",
                [cluster, namespace, name, tenant],
            )
            found = await self._tenant_of(cluster, namespace, name)
        if found is None:
            raise await self._claimed(tenant)
        if found.state in states.LEAVING:
            raise TenantLeavingError(
                f"The tenant {found.id!r} of this name is still being deleted ({found.state});"
                " this one is made when that is finished."
            )
        return found

    async def _tenant_of(self, cluster: str, namespace: str, name: str) -> Tenant | None:
        rows = await self._rows(
            "select * from logweir.tenants where cluster = %s and namespace = %s and name = %s"
            " and state <> 'deleted'",
            [cluster, namespace, name],
        )
        return msgspec.convert(rows[0], Tenant) if rows else None

    async def _claimed(self, tenant: TenantId) -> IdentityClaimedError:
        rows = await self._rows("select state from logweir.tenants where id = %s", [tenant])
        state = rows[0]["state"] if rows else ""
        if state == "deleted":
            return IdentityClaimedError(
                f"The tenant id {tenant!r} is retired: its tenant was deleted.",
                hint="Choose another spec.tenantId, or leave it out for a new one; a platform admin"
                " can release a retired id.",
            )
        if state == "retained":
            return IdentityClaimedError(
                f"The tenant id {tenant!r} belongs to another LogTenant, whose data is kept.",
                hint="Apply that LogTenant again to adopt it, or choose another spec.tenantId.",
            )
        return IdentityClaimedError(
            f"The tenant id {tenant!r} belongs to another LogTenant.",
            hint="Choose another spec.tenantId, or leave it out for a new one.",
        )

    async def adopt_tenant(self, tenant: TenantId) -> None:
        """Let a tenant whose data was kept be made again."""
        await self._rows(
            "update logweir.tenants set state = 'provisioning', lost_blocks = 0, lost_records = 0"
            " where id = %s and state = 'retained'",
            [tenant],
        )

    async def set_tenant(
        self, tenant: TenantId, state: str, retention_days: int, spec: dict[str, Any]
    ) -> None:
        """Write what the operator decided of a tenant that is not being deleted.

        What its deleted pipelines have left is kept as long as the tenant keeps, but for those that
        had a retention of their own.
        """
        await self._rows(
            "with written as (update logweir.tenants set state = %(state)s,"
            " retention_days = %(days)s, spec = %(spec)s where id = %(tenant)s"
            " and state in ('provisioning', 'active', 'readonly') returning id)"
            " update logweir.pipelines p set retention_days = %(days)s from written"
            " where p.tenant = written.id and p.state = 'deleted'"
            " and p.spec->'retention'->>'days' is null and p.retention_days <> %(days)s",
            {"state": state, "days": retention_days, "spec": Jsonb(spec), "tenant": tenant},
        )

    async def move_tenant(
        self,
        tenant: TenantId,
        before: TenantState,
        after: TenantState,
        *,
        spec: dict[str, Any] | None = None,
        lost_blocks: int = 0,
        lost_records: int = 0,
    ) -> None:
        """Take a tenant that is being deleted from one state to the next.

        One that is at its end has other secrets from then on, so that no key and no password of
        before is good for who adopts it, or has its id after it was released.

        Args:
            tenant: which.
            before: the state that it must be in.
            after: the next one, of `states.LEAVING`, or an end: retained, deleted.
            spec: of the object whose deletion begins now.
            lost_blocks: that are given up by this step.
            lost_records: in them.

        Raises:
            TenantMovedError: it is not in `before` any more.
        """
        async with self._door() as connection, connection.transaction():
            cursor = await connection.execute(
                "update logweir.tenants set state = %(after)s, spec = coalesce(%(spec)s, spec),"
                " lost_blocks = lost_blocks + %(blocks)s,"
                " lost_records = lost_records + %(records)s"
                " where id = %(tenant)s and state = %(before)s",
                {
                    "tenant": tenant,
                    "before": before,
                    "after": after,
                    "spec": None if spec is None else Jsonb(spec),
                    "blocks": lost_blocks,
                    "records": lost_records,
                },
            )
            if not cursor.rowcount:
                raise TenantMovedError(f"The tenant {tenant!r} is not {before} any more.")
            if after in ("retained", "deleted"):
                await connection.execute(_END, [tenant])
                await connection.execute("delete from logweir.api_keys where tenant = %s", [tenant])
            if after == "deleted":
                await connection.execute(
                    "delete from logweir.pipelines where tenant = %s", [tenant]
                )

    async def release_tenant_id(self, tenant: TenantId) -> bool:
        """Let a retired id be claimed by any object; false when it is not retired."""
        rows = await self._rows(
            "update logweir.tenants set cluster = '', namespace = '', name = ''"
            " where id = %s and state = 'deleted' returning 1",
            [tenant],
        )
        return bool(rows)

    async def storage(self, tenant: TenantId) -> Storage | None:
        """Return what a tenant has stored; None when its schema does not say. For the operator,
        which has the rights of the schemas' owners."""
        table = f'"{names.schema(tenant)}".storage'
        [found] = await self._rows("select to_regclass(%s) is not null as is_there", [table])
        if not found["is_there"]:
            return None
        columns = "stored_bytes, oldest_ns, next_drop_ns"
        rows = await self._rows(f"select {columns} from {table}")  # noqa: S608 - of an id
        return msgspec.convert(rows[0], Storage)

    async def ensure_pipeline(
        self, tenant: TenantId, name: str, retention_days: int, spec: dict[str, Any]
    ) -> Pipeline:
        """Return the tenant's pipeline of this name, made when there is none."""
        rows = await self._rows(
            "insert into logweir.pipelines (tenant, name, retention_days, spec)"
            " values (%s, %s, %s, %s) on conflict (tenant, name) where state <> 'deleted'"
            " do update set retention_days = excluded.retention_days, spec = excluded.spec"
            " returning *",
            [tenant, name, retention_days, Jsonb(spec)],
        )
        return msgspec.convert(rows[0], Pipeline)

    async def delete_pipeline(self, pipeline: PipelineId) -> None:
        """Mark a pipeline as deleted; its id is never used again."""
        await self._rows("update logweir.pipelines set state = 'deleted' where id = %s", [pipeline])

    async def delete_pipelines(self, tenant: TenantId) -> None:
        """Mark all pipelines of a tenant as deleted."""
        await self._rows(
            "update logweir.pipelines set state = 'deleted' where tenant = %s", [tenant]
        )

    async def ensure_api_key(
        self,
        tenant: Tenant,
        name: str,
        pipeline: PipelineId,
        scopes: int,
        generation: int,
        expires_at: datetime | None,
    ) -> ApiKeyRow:
        """Return the resource's key of this name and generation; an older one is revoked.

        So is one that would outlive `expires_at`, as its expiry stands in its text; and one of
        this name that was made over the API, as a resource is not refused a name.
        """
        async with self._changing_keys(tenant.id) as connection:
            await connection.execute(
                "update logweir.api_keys set revoked_at = now() where tenant = %s and name = %s"
                " and (revoked_at is null or revoked_at > now()) and (origin <> 'resource'"
                " or (generation, scopes, pipeline) <> (%s, %s, %s)"
                " or coalesce(expires_at, 'infinity') > %s)",
                [tenant.id, name, generation, scopes, pipeline, expires_at or "infinity"],
            )
            is_ingest = scopes == keys.SCOPE_INGEST
            cursor = await connection.execute(
                "insert into logweir.api_keys"
                " (id, tenant, name, pipeline, scopes, revision, generation, expires_at)"
                " values (%s, %s, %s, %s, %s, %s, %s, %s)"
                " on conflict (tenant, name) where revoked_at is null"
                " do update set expires_at = excluded.expires_at returning *",
                [
                    secrets.randbits(63),
                    tenant.id,
                    name,
                    pipeline,
                    scopes,
                    tenant.ingest_revision if is_ingest else tenant.access_revision,
                    generation,
                    expires_at,
                ],
            )
            return msgspec.convert(await cursor.fetchone(), ApiKeyRow)

    @contextlib.asynccontextmanager
    async def _changing_keys(
        self, tenant: TenantId
    ) -> AsyncIterator[psycopg.AsyncConnection[dict[str, Any]]]:
        """A transaction in which nobody else changes the tenant's keys."""
        async with self._door() as connection, connection.transaction():
            await connection.execute(
                "select pg_advisory_xact_lock(hashtextextended('api keys ' || %s, 0))", [tenant]
            )
            yield connection

    async def revoke_api_keys(self, tenant: TenantId, keep: Sequence[str]) -> None:
        """Revoke the keys of the tenant's resource whose names are not in `keep`."""
        await self._rows(
            "update logweir.api_keys set revoked_at = now() where tenant = %s"
            " and origin = 'resource' and revoked_at is null and not name = any(%s)",
            [tenant, list(keep)],
        )

    async def revoke_all_api_keys(self, tenant: TenantId) -> None:
        """Revoke every key of a tenant, wherever it comes from."""
        await self._rows(
            "update logweir.api_keys set revoked_at = now()"
            " where tenant = %s and (revoked_at is null or revoked_at > now())",
            [tenant],
        )

    async def objects(self) -> list[StoredObject]:
        """Return the objects of `up`, the deleted ones among them until they are gone."""
        rows = await self._rows("select * from logweir.objects order by created_at, name")
        return msgspec.convert(rows, list[StoredObject])

    async def apply_object(
        self,
        kind: str,
        namespace: str,
        name: str,
        spec: dict[str, Any],
        *,
        source: str = "",
        source_hash: str = "",
    ) -> StoredObject:
        """Create or change one object, as `apply_objects`."""
        wanted = [(kind, namespace, name, spec)]
        return (await self.apply_objects(wanted, source=source, source_hash=source_hash))[0]

    async def apply_objects(
        self,
        wanted: Sequence[tuple[str, str, str, dict[str, Any]]],
        *,
        source: str = "",
        source_hash: str = "",
    ) -> list[StoredObject]:
        """Create or change objects (kind, namespace, name, spec), all of them or none; a
        generation grows only when its spec changes.

        Raises:
            ObjectLeavingError: one of them is being deleted.
        """
        made = []
        async with self._door() as connection, connection.transaction():
            for kind, namespace, name, spec in wanted:
                cursor = await connection.execute(
                    "insert into logweir.objects as o"
                    " (kind, namespace, name, spec, source, source_hash, created_at)"
                    " values (%s, %s, %s, %s, %s, %s, clock_timestamp())"
                    " on conflict (kind, namespace, name) do update set"
                    " generation = o.generation + (o.spec <> excluded.spec)::int,"
                    " spec = excluded.spec, source = excluded.source,"
                    " source_hash = excluded.source_hash where o.deleted_at is null returning *",
                    [kind, namespace, name, Jsonb(spec), source, source_hash],
                )
                row = await cursor.fetchone()
                if row is None:
                    raise ObjectLeavingError(
                        f'{kind} "{name}" is being deleted; apply it again when it is gone'
                    )
                made.append(msgspec.convert(row, StoredObject))
        return made

    async def delete_object(self, kind: str, namespace: str, name: str) -> bool:
        """Ask for an object's deletion; false when there is none."""
        rows = await self._rows(
            "update logweir.objects set deleted_at = coalesce(deleted_at, now())"
            " where kind = %s and namespace = %s and name = %s and deleted_at is null returning 1",
            [kind, namespace, name],
        )
        return bool(rows)

    async def set_object_status(
        self, kind: str, namespace: str, name: str, status: dict[str, Any]
    ) -> None:
        """Write an object's status when it differs."""
        await self._rows(
            "update logweir.objects set status = %s"
            " where kind = %s and namespace = %s and name = %s and status <> %s",
            [Jsonb(status), kind, namespace, name, Jsonb(status)],
        )

    async def take_lease(self, name: str, holder: str, hold_s: float) -> bool:
        """Take or renew a lease; false while another holder has it.

        Args:
            name: of the work.
            holder: who asks; the same holder may take it again.
            hold_s: after which another may take it.
        """
        rows = await self._rows(
            "insert into logweir.leases as l (name, holder, until)"
            " values (%(name)s, %(holder)s, now() + make_interval(secs => %(hold)s))"
            " on conflict (name) do update set holder = excluded.holder, until = excluded.until"
            " where l.holder = excluded.holder or l.until < now() returning 1",
            {"name": name, "holder": holder, "hold": hold_s},
        )
        return bool(rows)

    async def purge_object(self, kind: str, namespace: str, name: str) -> None:
        """Forget an object whose deletion is finished."""
        await self._rows(
            "delete from logweir.objects"
            " where kind = %s and namespace = %s and name = %s and deleted_at is not null",
            [kind, namespace, name],
        )
