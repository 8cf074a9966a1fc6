"""A tenant that has a journal and no store: all that ingest and the journal's own tests need."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence

import world
from redis import asyncio as redis

from logweir.backends import control, provision
from logweir.core import keys
from logweir.core.names import PipelineId, TenantId
from logweir.standalone.valkey import Valkey

_pipeline_ids = itertools.count(1)


class JournalTenant(world.Tenant):
    """As a tenant of the world, but for the store and what is only written down."""

    async def api_key(
        self, scopes: int, pipeline: PipelineId = PipelineId(0), name: str = ""
    ) -> str:
        made = keys.ApiKey(
            tenant=self.id,
            key_id=secrets.randbits(63),
            pipeline=pipeline,
            scopes=scopes,
            expires_at_s=0,
            revision=1,
        )
        return self.key_text(made)

    async def close(self) -> None:
        for door in self._closers:
            await door.close()
        await self.redis.aclose()


async def make_tenant(
    name: str,
    valkey: Valkey,
    operator_redis: redis.Redis,
    roots: provision.Roots,
    *,
    pipelines: Sequence[str] = ("default",),
    retention_days: int = 30,
    labels: Sequence[str] = (),
    limits: provision.Limits = provision.Limits(buffer_bytes=1 << 30),
) -> JournalTenant:
    """Provision a tenant's journal, as the operator does."""
    row = control.Tenant(
        id=TenantId(name),
        cluster="test",
        namespace="default",
        name=name,
        state="active",
        spec={},
        retention_days=retention_days,
        writer_slot="a",
        reader_slot="a",
        keeper_slot="a",
        writer_revision=1,
        reader_revision=1,
        keeper_revision=1,
        redis_revision=1,
        ingest_revision=1,
        access_revision=1,
    )
    made = {
        one: control.Pipeline(
            id=PipelineId(next(_pipeline_ids)),
            tenant=row.id,
            name=one,
            state="active",
            spec={"labels": list(labels)},
            retention_days=retention_days,
        )
        for one in pipelines
    }
    await provision.provision_journal(operator_redis, row, list(made.values()), roots, limits)
    return JournalTenant(row, made, roots, limits, None, valkey, operator_redis, None)
