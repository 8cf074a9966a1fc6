"""What is taken away of a tenant in the journal, on each server and whatever is there of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import builders
import journaling
import msgspec
import pytest
import world
from redis import asyncio as redis

from logweir.backends import deprovision, provision, redis_client
from logweir.backends.deprovision import Left
from logweir.core import names
from logweir.core.binding import JournalServer, Login
from logweir.core.names import PipelineId
from logweir.standalone import accounts, servers
from logweir.standalone.valkey import Valkey


async def append(tenant: world.Tenant, records: int) -> None:
    uuid = world.new_uuid()
    requests = [builders.request([builders.record("hello")] * records)]
    payload = builders.encode(tenant.id, tenant.pipeline, requests, uuid=uuid)
    await tenant.appender().append(
        tenant.pipeline, uuid, payload, accepted=records, size_bytes=1, requests=1, keyed=[]
    )


async def test_what_is_left_counts_blocks_records_and_what_collectors_hold(
    make_journal_tenant, each_journal
):
    tenant = await make_journal_tenant(each_journal)
    await append(tenant, 2)
    await append(tenant, 3)
    reader = tenant.journal_reader()
    before = await deprovision.left(tenant.redis, tenant.id, [tenant.pipeline])
    [[first]] = (await reader.read([tenant.pipeline], 1, 1.0)).values()
    held = await deprovision.left(tenant.redis, tenant.id, [tenant.pipeline])
    await reader.ack(tenant.pipeline, [first])
    after = await deprovision.left(tenant.redis, tenant.id, [tenant.pipeline])

    assert before == Left(blocks=2, records=5, pending=0)
    assert held == Left(blocks=2, records=5, pending=1)
    assert after == Left(blocks=1, records=3, pending=0)


async def test_of_a_pipeline_that_was_never_made_nothing_is_left(make_journal_tenant, each_journal):
    tenant = await make_journal_tenant(each_journal)

    assert await deprovision.left(tenant.redis, tenant.id, [PipelineId(99)]) == Left(0, 0, 0)
    assert await deprovision.left(tenant.redis, tenant.id, []) == Left(0, 0, 0)


class Fileless(Valkey):
    """A server whose users stand in its configuration, as many a managed one."""

    def command(self) -> servers.Command:
        command = super().command()
        user = ("lw_operator", "on", ">operator", "~*", "&*", "+@all")
        users = ("--aclfile", "", "--user", *user)
        return msgspec.structs.replace(command, argv=(*command.argv, *users))


@pytest.fixture
def fileless(servers_folder: Path) -> Iterator[Valkey]:
    server = Fileless(
        servers_folder / "fileless", servers.free_port(), "operator", accounts.choose()
    )
    server.start(servers_folder / "fileless.log")
    yield server
    server.stop()


@pytest.fixture
async def operator(fileless: Valkey) -> AsyncIterator[redis.Redis]:
    client = redis_client.client(
        JournalServer(servers.LOOPBACK, fileless.port), Login("lw_operator", "operator")
    )
    await provision.bootstrap_journal(client)
    yield client
    await client.aclose()


async def test_a_server_without_a_file_of_users_lets_a_tenant_go(fileless, operator, roots):
    tenant = await journaling.make_tenant("fileless", fileless, operator, roots)
    await deprovision.drop_journal(operator, tenant.id)
    await tenant.close()

    assert [one for one in await operator.acl_users() if tenant.id in one] == []
    assert await operator.keys(names.journal_tenant(tenant.id) + "*") == []
