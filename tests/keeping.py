"""What the keeper's tests do to a tenant's store: write it in pieces, age it, read all of it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
import psycopg
from builders import delivery, record
from psycopg import sql
from world import Tenant

from logweir.backends import control, failpoint, provision, store
from logweir.backends.keeper_store import SmallSegment
from logweir.backends.retention_store import RetentionStore
from logweir.core import segment
from logweir.core.binding import KeeperBinding, Login
from logweir.core.names import PipelineId
from logweir.keeper import duties, merges, retention
from logweir.keeper.visit import Lease, Left, Visit
from logweir.runtime.life import Life

SEGMENT = (
    "pipeline, min_ts, max_ts, n, raw_bytes, codec, layout, label_sets, counts, filter_version,"
    " filter, body"
)

RETENTION_POINTS = ("keeper.mid_expire", "keeper.after_expire", "keeper.after_drop")
MERGE_POINTS = tuple(
    one for one in failpoint.POINTS if one.startswith("keeper.") and one not in RETENTION_POINTS
)


def keeper_binding(tenant: Tenant) -> KeeperBinding:
    """The binding of the keepers of this tenant's installation."""
    return KeeperBinding(
        store=tenant.store_server,
        control_login=Login(
            provision.KEEPER, provision.platform_password(tenant.roots, provision.KEEPER)
        ),
        maintain_roots={"1": tenant.roots.maintain.hex()},
    )


def keeper_control(tenant: Tenant) -> control.Control:
    """The control schema with the keeper's login."""
    binding = keeper_binding(tenant)
    conninfo = store.conninfo(binding.store, binding.control_login, "logweir test")
    return tenant._keep(control.Control(conninfo))


def keeper_store(tenant: Tenant) -> RetentionStore:
    return tenant._keep(RetentionStore(tenant.store_server, tenant.store_login("k"), tenant.id))


class Visiting(msgspec.Struct):
    """A visit as the keeper makes it: its connections are closed when it ends."""

    tenant: Tenant
    holder: str = "keeper-1"
    left: Left = msgspec.field(default_factory=Left)
    life: Life = msgspec.field(default_factory=Life)

    async def run(
        self,
        work: duties.Work,
        pipelines: Sequence[PipelineId],
        rules: retention.Rules | None = None,
    ) -> bool:
        store, control = keeper_store(self.tenant), keeper_control(self.tenant)
        lease = Lease(control, self.tenant.id, self.holder)
        try:
            made = Visit(self.tenant.id, store, lease, self.left, asyncio.Semaphore(1), self.life)
            return await made.run(work, pipelines, rules)
        finally:
            await store.close()
            await control.close()


def visit(tenant: Tenant, **options: Any) -> Visiting:
    return Visiting(tenant, **options)


async def write(
    tenant: Tenant,
    segments: int,
    records_each: int = 3,
    *,
    pipeline: str = "default",
    message: str = "message",
    **fields: Any,
) -> None:
    """Store so many small segments, one transaction each."""
    door = tenant.store()
    one = tenant.pipelines[pipeline].id
    for number in range(segments):
        fields["trace_id"] = f"{number:032x}"
        made = [record(f"{message} {place}", **fields) for place in range(records_each)]
        await door.commit(
            one,
            [await asyncio.to_thread(delivery, tenant.id, one, made)],
            now_ns=time.time_ns(),
            retention_days=tenant.row.retention_days,
        )


_owners: WeakKeyDictionary[Tenant, psycopg.AsyncConnection[Any]] = WeakKeyDictionary()


async def ask(
    tenant: Tenant, text: str, values: Sequence[object] | dict[str, object] = ()
) -> list[tuple[Any, ...]]:
    """Run a statement on the tenant's schema with all rights; `{}` is the schema."""
    if tenant not in _owners:
        url = tenant.postgres.url(database=provision.DATABASE)
        _owners[tenant] = await psycopg.AsyncConnection.connect(url, autocommit=True)
        tenant._keep(_owners[tenant])
    query = sql.SQL(text).format(sql.Identifier(tenant.schema))  # type: ignore[arg-type]
    cursor = await _owners[tenant].execute(query, values, binary=True)
    return await cursor.fetchall() if cursor.description else []


async def age(tenant: Tenant, wait_s: int = 60) -> None:
    """Make all segments older, so that they may be merged."""
    await ask(
        tenant,
        "update {}.segments set created_at = created_at - make_interval(secs => %s)",
        [wait_s],
    )


async def count(tenant: Tenant) -> int:
    """How many segments there are."""
    return (await ask(tenant, "select count(*) from {}.segments"))[0][0]


async def stored(tenant: Tenant) -> Counter[tuple[Any, ...]]:
    """All records of the store, each with how often it is there."""
    rows = await ask(tenant, "select " + SEGMENT + " from {}.segments")
    found: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        found.update(texts(segment.Segment(*row)))
    return found


def texts(one: segment.Segment) -> list[tuple[Any, ...]]:
    """The records of a segment, with all that they are."""
    found = segment.decode(one)
    columns = [
        getattr(found, name).split(b"\0") if getattr(found, name) else [b""] * found.n
        for name in ("message", "trace", "span", "attributes", "extra")
    ]
    labels = [found.label_sets[which] for which in found.label_set.tolist()]
    numbers = [getattr(found, name).tolist() for name in ("time_ns", "flags", "block", "index")]
    return list(zip([one.pipeline] * found.n, labels, *numbers, *columns, strict=True))


async def smalls(tenant: Tenant, **options: Any) -> list[SmallSegment]:
    """What the keeper lists for merging."""
    bounds = {"max_n": merges.MAX_SMALL_RECORDS, "max_raw_bytes": merges.MAX_SMALL_RAW_BYTES}
    return await keeper_store(tenant).small_segments((0, -1), **(bounds | options))
