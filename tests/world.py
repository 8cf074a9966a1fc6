"""A tenant of a test, with the doors that its roles have: made by the operator's own code."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from redis import asyncio as redis

from logweir.backends import control, journal, provision, store
from logweir.backends.segments_reader import Reader
from logweir.core import binding, block, ids, keys, names
from logweir.core.binding import JournalServer, Login, PostgresServer
from logweir.core.names import PipelineId, TenantId
from logweir.ingest import native
from logweir.standalone import servers
from logweir.standalone.postgres import Postgres
from logweir.standalone.valkey import Valkey


def operator_conninfo(postgres: Postgres, roots: provision.Roots) -> str:
    """libpq's string of the platform's operator login."""
    return store.conninfo(store_server(postgres), operator_login(roots), "logweir test")


def operator_login(roots: provision.Roots) -> Login:
    return Login(provision.OPERATOR, provision.platform_password(roots, provision.OPERATOR))


def store_server(postgres: Postgres) -> PostgresServer:
    return PostgresServer(servers.LOOPBACK, postgres.port, provision.DATABASE)


class Tenant:
    """A provisioned tenant. `row` is its row of the control schema, `pipelines` by name."""

    def __init__(
        self,
        row: control.Tenant,
        pipelines: dict[str, control.Pipeline],
        roots: provision.Roots,
        limits: provision.Limits,
        postgres: Postgres,
        valkey: Valkey,
        operator_redis: redis.Redis,
        operator_control: control.Control,
    ) -> None:
        self.row = row
        self.id: TenantId = row.id
        self.pipelines = pipelines
        self.roots = roots
        self.limits = limits
        self.postgres = postgres
        self.valkey = valkey
        self.redis = operator_redis
        self.control = operator_control
        self.schema = names.schema(row.id)
        self._closers: list[Any] = []

    @property
    def pipeline(self) -> PipelineId:
        """The id of the pipeline `default`."""
        return self.pipelines["default"].id

    @property
    def journal_server(self) -> JournalServer:
        return JournalServer(servers.LOOPBACK, self.valkey.port)

    @property
    def store_server(self) -> PostgresServer:
        return store_server(self.postgres)

    def journal_login(self, kind: str) -> Login:
        """The login of the tenant's `in`, `col` or `tail` user."""
        user = names.redis_user(self.id, kind)  # type: ignore[arg-type]
        return Login(user, provision.journal_password(self.roots, self.row, user))

    def store_login(self, kind: str) -> Login:
        """The login of the tenant's writer `w`, reader `r` or keeper `k`."""
        return Login(*provision.tenant_password(self.roots, self.row, kind))  # type: ignore[arg-type]

    def conninfo(self, kind: str) -> str:
        return store.conninfo(self.store_server, self.store_login(kind), "logweir test")

    def appender(self) -> journal.Appender:
        return self._keep(journal.Appender(self.journal_server, self.journal_login("in"), self.id))

    def journal_reader(self, consumer: str = "c0") -> journal.Reader:
        return self._keep(
            journal.Reader(self.journal_server, self.journal_login("col"), self.id, consumer)
        )

    def store(self) -> store.Store:
        return self._keep(store.Store(self.store_server, self.store_login("w"), self.id))

    def reader(self, max_connections: int = 4) -> Reader:
        return self._keep(
            Reader(self.store_server, self.store_login("r"), self.id, max_connections)
        )

    def ingest_binding(self) -> binding.IngestTenant:
        secret = keys.ingest_secret(self.roots.sign, self.id, self.row.ingest_revision)
        return binding.IngestTenant(
            tenant=self.id,
            journal=self.journal_server,
            login=self.journal_login("in"),
            secrets={str(self.row.ingest_revision): secret.hex()},
            pipelines=tuple(
                binding.IngestPipeline(
                    one.id, name, one.retention_days, tuple(one.spec.get("labels", ()))
                )
                for name, one in self.pipelines.items()
            ),
        )

    def collector_binding(self, linger_s: float = 0.05) -> binding.CollectorTenant:
        return binding.CollectorTenant(
            tenant=self.id,
            journal=self.journal_server,
            journal_login=self.journal_login("col"),
            store=self.store_server,
            store_login=self.store_login("w"),
            pipelines=tuple(
                binding.CollectorPipeline(one.id, name, one.retention_days, linger_s)
                for name, one in self.pipelines.items()
            ),
        )

    async def api_key(
        self, scopes: int, pipeline: PipelineId = PipelineId(0), name: str = ""
    ) -> str:
        """Make an API key, known to the control schema, and return its text."""
        row = await self.control.ensure_api_key(
            self.row, name or secrets.token_hex(4), pipeline, scopes, 1, None
        )
        return self.key_text(row.key())

    def key_text(self, key: keys.ApiKey) -> str:
        if key.is_ingest:
            return keys.encode(key, keys.ingest_secret(self.roots.sign, self.id, key.revision))
        return keys.encode(key, keys.access_secret(self.roots.sign, key.revision))

    async def store_records(
        self, records: Sequence[dict[str, Any]], *, pipeline: PipelineId | None = None
    ) -> list[bytes]:
        """Put records of the native form straight into the store, as one block; return its id."""
        from builders import delivery

        one = delivery(self.id, pipeline or self.pipeline, records)
        await self.store().commit(
            pipeline or self.pipeline,
            [one],
            now_ns=time.time_ns(),
            retention_days=self.row.retention_days,
        )
        return [one.uuid]

    def _keep(self, door: Any) -> Any:
        self._closers.append(door)
        return door

    async def close(self) -> None:
        for door in self._closers:
            await door.close()
        await self.control.close()
        await self.redis.aclose()


async def make_tenant(
    name: str,
    postgres: Postgres,
    valkey: Valkey,
    operator_redis: redis.Redis,
    roots: provision.Roots,
    *,
    pipelines: Sequence[str] = ("default",),
    retention_days: int = 30,
    labels: Sequence[str] = (),
    limits: provision.Limits = provision.Limits(buffer_bytes=1 << 30),
) -> Tenant:
    """Claim and provision a tenant in all servers, as the operator does."""
    operator_control = control.Control(operator_conninfo(postgres, roots))
    row = await operator_control.claim_tenant(TenantId(name), "test", "default", name)
    await operator_control.set_tenant(row.id, "active", retention_days, {})
    row = next(one for one in await operator_control.tenants() if one.id == row.id)
    made = {
        one: await operator_control.ensure_pipeline(
            row.id, one, retention_days, {"labels": list(labels)}
        )
        for one in pipelines
    }
    provision.provision_store(operator_conninfo(postgres, roots), row, roots, limits)
    await provision.provision_journal(operator_redis, row, list(made.values()), roots, limits)
    return Tenant(row, made, roots, limits, postgres, valkey, operator_redis, operator_control)


def part_of(records: Sequence[dict[str, Any]], arrival_ns: int) -> native.Decoded:
    """Decode native records as ingest does."""
    import msgspec

    rules = native.Rules(arrival_ns=arrival_ns, retention_days=3650)
    return native.decode(msgspec.json.encode(list(records)), rules)


def new_uuid(now_ms: int | None = None) -> bytes:
    """A block's id."""
    return ids.uuid7(now_ms or int(time.time() * 1000), secrets.token_bytes(10))


__all__ = ["Tenant", "block", "make_tenant", "new_uuid", "operator_conninfo", "part_of"]
