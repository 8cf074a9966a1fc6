"""A reconciler of `up` in the test's own loop, over the session's real servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import builders
import psycopg
import world
import yaml

from logweir.backends import control, journal, provision
from logweir.backends.control import StoredObject
from logweir.backends.rotations import Rotations
from logweir.collector.worker import Worker
from logweir.core import names
from logweir.core.binding import (
    CollectorBinding,
    IngestBinding,
    JournalServer,
    Login,
    PostgresServer,
)
from logweir.core.names import TenantId
from logweir.runtime.life import Life
from logweir.standalone import objects, servers
from logweir.standalone.cluster import Cluster
from logweir.standalone.cluster_files import Access, TenantKeys
from logweir.standalone.folder import Folder, read_json
from logweir.standalone.postgres import Postgres
from logweir.standalone.valkey import Valkey
from logweir_operator import manifest, resources
from logweir_operator.bindings import Site

URL = "http://up"


def tenant(name: str = "acme", namespace: str = "default", **spec: Any) -> dict[str, Any]:
    """A LogTenant with an ingest key and a query key, unless `apiKeys` says otherwise."""
    keys = [{"name": "in", "scopes": ["ingest"]}, {"name": "out", "scopes": ["query"]}]
    return {
        "apiVersion": "logweir.dev/v1alpha1",
        "kind": "LogTenant",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"apiKeys": keys} | spec,
    }


def pipeline(
    name: str = "web", of: str = "acme", namespace: str = "default", **spec: Any
) -> dict[str, Any]:
    """A LogPipeline of the tenant `acme`."""
    return {
        "apiVersion": "logweir.dev/v1alpha1",
        "kind": "LogPipeline",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"tenantRef": {"name": of}} | spec,
    }


def text(*documents: dict[str, Any]) -> str:
    """Documents as one YAML file."""
    return yaml.safe_dump_all(documents)


class Place:
    """A folder, a control schema, and the reconciler between them."""

    def __init__(
        self, folder: Path, postgres: Postgres, valkey: Valkey, roots: provision.Roots
    ) -> None:
        self.folder = Folder(folder)
        self.folder.make()
        self.postgres = postgres
        self.valkey = valkey
        self.roots = roots
        self.site = Site(
            PostgresServer(servers.LOOPBACK, postgres.port, provision.DATABASE),
            JournalServer(servers.LOOPBACK, valkey.port),
            roots,
        )
        self.control = Rotations(world.operator_conninfo(postgres, roots))
        self.cluster = self.new_cluster()

    def new_cluster(self) -> Cluster:
        """A reconciler that knows nothing yet, as after a restart."""
        login = Login("lw_operator", "operator")
        self.cluster = Cluster(self.folder, self.site, login, URL, spread_s=0.0)
        return self.cluster

    async def restart(self) -> None:
        await self.cluster.close()
        await self.new_cluster().bootstrap(self.postgres.url())

    async def apply(self, *documents: dict[str, Any]) -> list[str]:
        """What `logweir apply -f` does."""
        resources = manifest.read(text(*documents), "f.yaml")
        return [str(one) for one in await objects.apply(self.control, resources)]

    async def delete(self, kind: str, name: str, namespace: str = "default") -> None:
        await objects.delete(self.control, kind, namespace, name)

    async def passes(self, count: int = 1) -> None:
        for _ in range(count):
            await self.cluster.reconcile()

    async def object(self, kind: str, name: str, namespace: str = "default") -> StoredObject | None:
        wanted = (kind, namespace, name)
        found = {resources.key_of(one): one for one in await self.control.objects()}
        return found.get(wanted)

    async def ready(self, kind: str, name: str, namespace: str = "default") -> tuple[str, str]:
        """Status and reason of the condition Ready."""
        found = await self.object(kind, name, namespace)
        assert found is not None
        [one] = [c for c in found.status["conditions"] if c["type"] == "Ready"]
        return one["status"], one["reason"]

    async def message(self, kind: str, name: str) -> str:
        found = await self.object(kind, name)
        assert found is not None
        return found.status["conditions"][0]["message"]

    async def row(self, name: str, namespace: str = "default") -> control.Tenant | None:
        rows = await self.control.tenants()
        return next((o for o in rows if (o.namespace, o.name) == (namespace, name)), None)

    def keys(self, name: str = "acme", namespace: str = "default") -> TenantKeys:
        return read_json(self.folder.keys / f"{namespace}.{name}.json", TenantKeys)

    def key_files(self) -> list[str]:
        return sorted(one.name for one in self.folder.keys.iterdir())

    def access(self) -> Access:
        return read_json(self.folder.access, Access)

    def ingest_binding(self) -> IngestBinding:
        return read_json(self.folder.bindings / "ingest.json", IngestBinding)

    def collector_binding(self) -> CollectorBinding:
        return read_json(self.folder.bindings / "collector.json", CollectorBinding)

    def served(self) -> list[str]:
        """Names of the pipelines that records may come into."""
        return [p.name for t in self.ingest_binding().tenants for p in t.pipelines]

    def drained(self) -> list[str]:
        """Names of the pipelines that collectors drain."""
        return [p.name for t in self.collector_binding().tenants for p in t.pipelines]

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder.manifests / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def sql(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the store as its superuser."""
        with psycopg.connect(self.postgres.url(database=provision.DATABASE), autocommit=True) as c:
            cursor = c.execute(query.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def forget(self) -> None:
        """Leave no object to the next test; tenants stay, under names of their own."""
        self.sql("delete from logweir.objects")
        self.sql("update logweir.tenants set state = 'deleted' where cluster = 'up'")


@contextlib.asynccontextmanager
async def reconciling(
    folder: Path, postgres: Postgres, valkey: Valkey, roots: provision.Roots
) -> AsyncIterator[Place]:
    """Yield a place whose reconciler has bootstrapped."""
    place = Place(folder, postgres, valkey, roots)
    try:
        await place.cluster.bootstrap(postgres.url())
        yield place
    finally:
        await place.cluster.close()
        await place.control.close()
        place.forget()


def appender(place: Place, of: TenantId) -> journal.Appender:
    """The journal as ingest has it, with the login of its binding."""
    [mine] = [one for one in place.ingest_binding().tenants if one.tenant == of]
    return journal.Appender(mine.journal, mine.login, of)


async def append(door: journal.Appender, of: TenantId, to: int) -> None:
    uuid = world.new_uuid()
    payload = builders.encode(of, to, [builders.request([builders.record("hello")])], uuid=uuid)
    await door.append(to, uuid, payload, accepted=1, size_bytes=10, requests=1, keyed=[])


async def only_pipeline(place: Place, of: TenantId) -> int:
    """The id of the one pipeline that the tenant has."""
    [found] = [one.id for one in await place.control.pipelines() if one.tenant == of]
    return found


async def append_records(place: Place, of: TenantId, count: int) -> None:
    """Append blocks of one record to the tenant's one pipeline."""
    to = await only_pipeline(place, of)
    door = appender(place, of)
    for _ in range(count):
        await append(door, of, to)
    await door.close()


async def drain(place: Place, of: TenantId) -> None:
    """Collect what the tenant's journals hold, as the collector does by its binding."""
    [mine] = [one for one in place.collector_binding().tenants if one.tenant == of]
    life = Life()
    task = asyncio.create_task(Worker(mine, "c0", life).run())
    streams = [names.journal_pipeline(of, one.id) + "q" for one in mine.pipelines]
    async with asyncio.timeout(20):
        while any([await place.cluster._journal.xlen(one) for one in streams]):
            await asyncio.sleep(0.01)
    life.stopping.set()
    await task


def records_in(place: Place, of: TenantId) -> int:
    [[count]] = place.sql(f"select coalesce(sum(n), 0)::int from {names.schema(of)}.segments")
    return count


async def made(place: Place, *documents: dict, passes: int = 1) -> TenantId:
    """Apply documents, the first of which is a tenant; return its id."""
    await place.apply(*documents)
    await place.passes(passes)
    row = await place.row(documents[0]["metadata"]["name"])
    assert row is not None
    return row.id
