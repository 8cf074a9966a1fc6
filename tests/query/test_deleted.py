"""What a deleted pipeline has left can be read until its retention."""

from __future__ import annotations

import websockets
from builders import records

from logweir.core import keys


async def test_records_of_a_deleted_pipeline_are_found_by_its_name(role, make_tenant, client_of):
    tenant = await make_tenant(pipelines=("default", "old"))
    await tenant.store_records(records(2), pipeline=tenant.pipelines["old"].id)
    await tenant.control.delete_pipeline(tenant.pipelines["old"].id)
    client = await client_of(await tenant.api_key(keys.SCOPE_QUERY), tenant)

    found = await client.get("/api/v1/query", params={"query": '{pipeline="old"}'})

    assert [one["message"] for one in found.json()["records"]] == ["message 1", "message 0"]


async def test_a_tail_leaves_the_journal_of_a_deleted_pipeline_alone(role, make_tenant, client_of):
    tenant = await make_tenant(pipelines=("default", "old"))
    await tenant.control.delete_pipeline(tenant.pipelines["old"].id)
    key = await tenant.api_key(keys.SCOPE_QUERY)
    await client_of(key, tenant)
    url = role.url.replace("http", "ws") + "/api/v1/tail"
    async with websockets.connect(url, additional_headers={"x-api-key": key}) as socket:
        await socket.recv()
        leased = [one async for one in tenant.redis.scan_iter("*t_" + tenant.id + ":*:t")]

    assert [one.decode().split(":")[-2] for one in leased] == [str(tenant.pipeline)]
