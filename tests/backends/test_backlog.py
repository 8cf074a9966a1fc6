"""What waits in many journals, asked at once: on Valkey and on Redis."""

from __future__ import annotations

import asyncio
import time

import pytest
import world

from logweir.backends import backlog, journal, redis_client
from logweir.core import errors, names
from logweir.core.backlog import Sample
from logweir.core.binding import JournalServer, Login
from logweir.core.names import PipelineId


@pytest.fixture
async def tenant(make_journal_tenant, each_journal):
    return await make_journal_tenant(each_journal, pipelines=("default", "second"))


async def append(tenant, payload: bytes, pipeline: PipelineId | None = None) -> None:
    await tenant.appender().append(
        pipeline or tenant.pipeline,
        world.new_uuid(),
        payload,
        accepted=1,
        size_bytes=10,
        requests=1,
        keyed=(),
    )


async def sample(tenant, pipeline: PipelineId | None = None) -> Sample:
    wanted = pipeline or tenant.pipeline
    return (await backlog.samples(tenant.redis, [(tenant.id, wanted)]))[wanted]


def stream(tenant) -> str:
    return names.journal_pipeline(tenant.id, tenant.pipeline) + "q"


async def test_a_journal_that_holds_nothing_is_empty(tenant):
    before_s = time.monotonic()

    found = await sample(tenant)

    assert found == Sample(at_s=found.at_s)
    assert found.is_empty
    assert before_s <= found.at_s <= time.monotonic()


async def test_a_stream_that_is_not_there_holds_nothing(tenant):
    unknown = PipelineId(1 << 40)
    assert (await sample(tenant, unknown)).is_empty


async def test_what_waits_is_counted_until_it_is_acknowledged(tenant):
    for size in (100, 200, 300):
        await append(tenant, b"x" * size)
    reader = tenant.journal_reader()

    appended = await sample(tenant)
    first, second = (await reader.read([tenant.pipeline], 2, 1.0))[tenant.pipeline]
    handed_out = await sample(tenant)
    await reader.ack(tenant.pipeline, [first])
    acknowledged = await sample(tenant)
    [third] = (await reader.read([tenant.pipeline], 2, 1.0))[tenant.pipeline]
    await reader.ack(tenant.pipeline, [second, third])
    emptied = await sample(tenant)

    def seen(one: Sample) -> tuple[int, ...]:
        return one.entries, one.pending, one.backlog_bytes, one.appended_bytes, one.stored_bytes

    assert seen(appended) == (3, 0, 600, 600, 0)
    assert seen(handed_out) == (3, 2, 600, 600, 0)
    assert seen(acknowledged) == (2, 1, 500, 600, 100)
    assert seen(emptied) == (0, 0, 0, 600, 600)
    assert emptied.is_empty
    assert not appended.is_empty


@pytest.mark.parametrize("is_handed_out", [False, True])
async def test_the_age_is_that_of_the_oldest_entry(tenant, is_handed_out):
    server_ms = int((await tenant.redis.time())[0]) * 1000
    fields = ("v", 1, "u", world.new_uuid(), "n", 1, "r", "", "b", b"block")
    await journal.command(tenant.redis, "XADD", stream(tenant), server_ms - 60_000, *fields)
    await append(tenant, b"young")
    if is_handed_out:
        await tenant.journal_reader().read([tenant.pipeline], 1, 1.0)

    found = await sample(tenant)

    assert found.entries == 2
    assert found.oldest_age_s == pytest.approx(60, abs=5)


async def test_a_journal_of_a_program_without_the_count_of_bytes_has_true_differences(tenant):
    await append(tenant, b"x" * 100)
    own = names.journal_pipeline(tenant.id, tenant.pipeline)
    await tenant.redis.hdel(own + "c", "appended")
    before = await sample(tenant)

    await append(tenant, b"x" * 50)
    reader = tenant.journal_reader()
    entries = (await reader.read([tenant.pipeline], 2, 1.0))[tenant.pipeline]
    await reader.ack(tenant.pipeline, entries)
    after = await sample(tenant)

    assert after.appended_bytes - before.appended_bytes == 50
    assert after.stored_bytes - before.stored_bytes == 150


async def test_many_pipelines_are_told_apart(make_journal_tenant, each_journal):
    tenants = [
        await make_journal_tenant(each_journal, pipelines=[f"p{n}" for n in range(150)])
        for _ in range(2)
    ]
    wanted = [(tenant.id, one.id) for tenant in tenants for one in tenant.pipelines.values()]
    first, last = tenants
    loaded = {
        first.pipelines["p0"].id: 10,
        first.pipelines["p149"].id: 20,
        last.pipelines["p100"].id: 30,
    }
    for tenant in tenants:
        for one in tenant.pipelines.values():
            if one.id in loaded:
                await append(tenant, b"x" * loaded[one.id], one.id)

    found = await backlog.samples(first.redis, wanted)

    assert set(found) == {pipeline for _, pipeline in wanted}
    assert {one: found[one].backlog_bytes for one in found if not found[one].is_empty} == loaded


async def test_nothing_is_asked_when_nothing_is_wanted(tenant):
    assert await backlog.samples(tenant.redis, []) == {}


async def test_a_stream_that_cannot_be_asked_is_not_taken_for_an_empty_one(tenant, caplog):
    second = tenant.pipelines["second"].id
    await append(tenant, b"x" * 10, second)
    await tenant.redis.delete(stream(tenant))
    await tenant.redis.set(stream(tenant), "no stream")

    found = await backlog.samples(tenant.redis, [(tenant.id, tenant.pipeline), (tenant.id, second)])

    assert set(found) == {second}
    assert found[second].backlog_bytes == 10
    assert "WRONGTYPE" in caplog.records[-1].why


async def test_a_user_that_may_not_ask_gets_no_numbers(tenant):
    client = redis_client.client(tenant.journal_server, tenant.journal_login("col"))
    with pytest.raises(errors.UnavailableError, match="say what waits"):
        await backlog.samples(client, [(tenant.id, tenant.pipeline)])
    await client.aclose()


async def test_an_operator_with_just_these_rights_may_ask(tenant):
    await journal.command(
        *(tenant.redis, "ACL", "SETUSER", "sampler", "reset", "on", ">secret"),
        *("%R~{s*}:t_*:q", "%R~{s*}:t_*:c", "-@all", "+fcall_ro|lw_samples"),
        *("+time", "+xlen", "+hmget", "+xpending", "+xrange"),
    )
    await append(tenant, b"x" * 10)
    client = redis_client.client(tenant.journal_server, Login("sampler", "secret"))

    found = await backlog.samples(client, [(tenant.id, tenant.pipeline)])

    assert found[tenant.pipeline].entries == 1
    await client.aclose()
    await journal.command(tenant.redis, "ACL", "DELUSER", "sampler")


async def test_a_journal_without_the_library_gives_no_numbers(start_journal):
    server = start_journal()
    client = redis_client.client(
        JournalServer("127.0.0.1", server.port), Login("lw_operator", "operator")
    )
    with pytest.raises(errors.UnavailableError):
        await backlog.samples(client, [(names.tenant_id("acme"), PipelineId(1))])
    await client.aclose()


async def test_a_journal_that_is_away_gives_no_numbers(start_journal):
    server = start_journal()
    client = redis_client.client(
        JournalServer("127.0.0.1", server.port), Login("lw_operator", "operator")
    )
    await asyncio.to_thread(server.stop)
    with pytest.raises(errors.UnavailableError):
        await backlog.samples(client, [(names.tenant_id("acme"), PipelineId(1))])
    await client.aclose()
