"""Ways to fill a journal, run collectors on it, and look at what came into the store."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import builders
import psycopg
import world

from logweir.backends import provision
from logweir.collector.buffer import Held
from logweir.collector.worker import Worker
from logweir.core import block, columns, names, segment
from logweir.core.binding import CollectorTenant
from logweir.core.names import PipelineId
from logweir.runtime.life import Life

WAIT_S = 20.0


async def until(true: Callable[[], Any], what: str = "it to become true") -> None:
    """Wait until a condition, which may be awaitable, holds."""
    deadline_s = time.monotonic() + WAIT_S
    while True:
        found = true()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return
        assert time.monotonic() < deadline_s, f"waited in vain for {what}"
        await asyncio.sleep(0.01)


# The journal


def stream(tenant: world.Tenant, pipeline: PipelineId | None = None) -> str:
    return names.journal_pipeline(tenant.id, pipeline or tenant.pipeline) + "q"


def some(tenant: world.Tenant, text: str, count: int = 1, pipeline: str = "default") -> bytes:
    """A block of records that say `text` and their number."""
    return block_of(tenant, [builders.record(f"{text} {n}") for n in range(count)], pipeline)


def block_of(
    tenant: world.Tenant, records: Sequence[dict[str, Any]], pipeline: str = "default"
) -> bytes:
    """A block of one request."""
    of = builders.request(records)
    return builders.encode(tenant.id, tenant.pipelines[pipeline].id, [of])


async def append(
    tenant: world.Tenant, *payloads: bytes, pipeline: PipelineId | None = None
) -> None:
    """Append blocks as ingest does, but without markers: the ledger alone must find repeats."""
    door = tenant.appender()
    for payload in payloads:
        header = block.header(payload)
        await door.append(
            pipeline or tenant.pipeline,
            header.uuid,
            payload,
            accepted=header.accepted,
            size_bytes=header.size_bytes,
            requests=len(header.requests),
            keyed=[],
        )


async def append_raw(
    tenant: world.Tenant, payload: bytes, *, uuid: bytes | None = None, accepted: int = 1
) -> bytes:
    """Append any bytes in place of a block; return the id that they went in under."""
    uuid = uuid or world.new_uuid()
    await tenant.appender().append(
        tenant.pipeline, uuid, payload, accepted=accepted, size_bytes=1, requests=1, keyed=[]
    )
    return uuid


async def backlog(tenant: world.Tenant, pipeline: PipelineId | None = None) -> int:
    return int(await tenant.redis.xlen(stream(tenant, pipeline)))


async def pending(tenant: world.Tenant, pipeline: PipelineId | None = None) -> int:
    """Entries that were handed out and are not acknowledged."""
    found = await tenant.redis.xpending(stream(tenant, pipeline), names.CONSUMER_GROUP)
    return int(found["pending"])


async def in_flight(tenant: world.Tenant) -> int:
    """Records that the journal's counters take to be in it."""
    key = names.journal_pipeline(tenant.id, tenant.pipeline) + "c"
    return int(await tenant.redis.hget(key, "inflight") or 0)


async def drained(tenant: world.Tenant, pipeline: PipelineId | None = None) -> None:
    """Wait until a pipeline's journal is empty."""
    await until(lambda: _is_empty(tenant, pipeline), "an empty journal")


async def _is_empty(tenant: world.Tenant, pipeline: PipelineId | None) -> bool:
    return await backlog(tenant, pipeline) == 0


@contextlib.asynccontextmanager
async def forbidden(tenant: world.Tenant, command: str) -> AsyncIterator[None]:
    """The tenant's collectors may not use a command. Without XACK nothing is acknowledged."""
    user = names.redis_user(tenant.id, "col")
    await tenant.redis.execute_command("ACL", "SETUSER", user, f"-{command}")
    yield
    await tenant.redis.execute_command("ACL", "SETUSER", user, f"+{command}")


# The collector


class Reports(Life):
    """A life that remembers all problems that were ever reported, and counts good turns."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[str, str]] = []
        self._good = 0

    def report(self, part: str, problem: str = "") -> None:
        super().report(part, problem)
        if problem:
            self.heard.append((part, problem))
        elif part.startswith("tenant "):
            self._good += 1

    async def turns(self, count: int) -> None:
        """Wait until a worker has made so many more turns."""
        enough = self._good + count
        await until(lambda: self._good >= enough, "more turns")


@contextlib.asynccontextmanager
async def collecting(
    binding: CollectorTenant,
    consumer: str = "c0",
    life: Reports | None = None,
    held: Held | None = None,
) -> AsyncIterator[Worker]:
    """A running worker; leaving stops it in order."""
    own = life or Reports()
    worker = Worker(binding, consumer, own, held)
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        own.stopping.set()
        await task


@contextlib.asynccontextmanager
async def dying(binding: CollectorTenant, consumer: str = "c0") -> AsyncIterator[Worker]:
    """A running worker; leaving ends it wherever it is, without storing what it holds."""
    worker = Worker(binding, consumer, Reports())
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        # redis-py sends by wait_for, which swallows some cancellations in Python 3.11.
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=0.1)


# The store


def connect(tenant: world.Tenant) -> psycopg.Connection[Any]:
    """The superuser, in the tenant's schema."""
    return psycopg.connect(
        tenant.postgres.url(database=provision.DATABASE),
        options=f"-c search_path={tenant.schema}",
        autocommit=True,
    )


def rows(tenant: world.Tenant, query: str, values: Sequence[object] = ()) -> list[Any]:
    with connect(tenant) as connection:
        cursor = connection.execute(query.encode(), values)
        return cursor.fetchall() if cursor.description else []


def value(tenant: world.Tenant, query: str, values: Sequence[object] = ()) -> Any:
    [(found,)] = rows(tenant, query, values)
    return found


@contextlib.contextmanager
def stalled_commits(tenant: world.Tenant) -> Iterator[None]:
    """All transactions of the tenant's writers wait before their last statement."""
    with connect(tenant) as connection, connection.transaction():
        connection.execute("lock table usage in exclusive mode")
        yield


@contextlib.contextmanager
def no_logins(tenant: world.Tenant) -> Iterator[None]:
    """The tenant's writers are thrown out and not let in again."""
    user = tenant.store_login("w").user
    rows(tenant, f"alter role {user} connection limit 0")
    rows(
        tenant,
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = %s",
        [user],
    )
    yield
    rows(tenant, f"alter role {user} connection limit 40")


async def waiting_backends(tenant: world.Tenant, count: int = 1) -> None:
    """Wait until so many of the tenant's writers wait for a lock."""
    user = tenant.store_login("w").user
    query = "select count(*) from pg_stat_activity where usename = %s and wait_event_type = 'Lock'"
    await until(lambda: value(tenant, query, [user]) == count, f"{count} writers that wait")


def segments(tenant: world.Tenant) -> list[tuple[int, segment.Segment]]:
    """All segments with their row ids."""
    names_of = ", ".join(segment.Segment.__struct_fields__)
    found = rows(tenant, f"select id, {names_of} from segments order by min_ts, id")
    return [(one[0], segment.Segment(*one[1:])) for one in found]


def messages(tenant: world.Tenant) -> list[str]:
    """The messages of all stored records, sorted."""
    found = [segment.decode(one) for _, one in segments(tenant)]
    return sorted(t.decode() for c in found for t in columns.split(c.message, c.n) if c.n)


def usage(tenant: world.Tenant) -> dict[str, int]:
    """The sums of the usage rows, of all pipelines."""
    words = ("requests", "stored", "quarantined", "expired", "repeated")
    sums = ", ".join(f"coalesce(sum({word}), 0)::int8" for word in words)
    [found] = rows(tenant, f"select {sums} from usage")
    return dict(zip(words, found, strict=True))


def outcomes(tenant: world.Tenant) -> dict[str, int]:
    """The same sums from the ledger's rows of blocks."""
    found = [row[0] for row in rows(tenant, "select outcomes from ledger where kind = 'b'")]
    sums = {"requests": sum(len(one) // 4 for one in found)}
    for place, word in enumerate(("stored", "quarantined", "expired", "repeated")):
        sums[word] = sum(sum(one[place::4]) for one in found)
    return sums


def stored_records(tenant: world.Tenant) -> int:
    return int(value(tenant, "select coalesce(sum(n), 0)::int8 from segments"))


def quarantine(tenant: world.Tenant) -> list[tuple[int, str, bytes]]:
    """Request index, reason and payload of each quarantined thing, in the order of arrival."""
    return rows(tenant, "select request_index, reason, payload from quarantine order by id")


def is_balanced(tenant: world.Tenant) -> bool:
    """Whether segments, usage and ledger say the same."""
    sums = usage(tenant)
    return sums == outcomes(tenant) and sums["stored"] == stored_records(tenant)
