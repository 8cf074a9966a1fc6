"""Who may read what, over HTTP: keys, scopes, pipelines, tenants."""

from __future__ import annotations

import time

import httpx2
import pytest
from builders import record
from querying import holding
from serving import until
from tailing import refusal

from logweir.core import keys

PATHS = ["query", "histogram", "labels", "labels/service/values", "fields"]


@pytest.mark.parametrize("path", [*PATHS, "receipts/00000000-0000-7000-8000-000000000000.0"])
async def test_every_endpoint_asks_for_a_key(role, path):
    async with httpx2.AsyncClient() as client:
        answer = await client.get(f"{role.url}/api/v1/{path}")

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "unauthorized"


@pytest.mark.parametrize("path", PATHS)
async def test_no_endpoint_reads_for_an_ingest_key(role, empty_keys, path):
    headers = {"x-api-key": empty_keys.ingest}
    async with httpx2.AsyncClient(headers=headers) as client:
        answer = await client.get(f"{role.url}/api/v1/{path}")

    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "forbidden"


@pytest.fixture
async def two(make_tenant):
    """A tenant with records in two pipelines."""
    tenant = await make_tenant(pipelines=["default", "other"])
    for name, one in tenant.pipelines.items():
        await tenant.store_records([record(f"of {name}", service=name)], pipeline=one.id)
    return tenant


async def test_a_key_of_a_pipeline_sees_the_records_of_that_pipeline(two, client_of):
    client = await client_of(await two.api_key(keys.SCOPE_QUERY, two.pipelines["other"].id))

    found = (await client.get("/api/v1/query")).json()["records"]
    asked = (await client.get("/api/v1/query", params={"query": '{pipeline="default"}'})).json()
    values = (await client.get("/api/v1/labels/pipeline/values")).json()["values"]
    services = (await client.get("/api/v1/labels/service/values")).json()["values"]

    assert [one["message"] for one in found] == ["of other"]
    assert asked["records"] == []
    assert values == [{"value": "other", "count": 1}]
    assert services == [{"value": "other", "count": 1}]


async def test_a_tenant_sees_nothing_of_another(two, make_tenant, client_of):
    other = await make_tenant()
    client = await client_of(await other.api_key(keys.SCOPE_QUERY))

    assert (await client.get("/api/v1/query")).json()["records"] == []
    assert (await client.get("/api/v1/labels")).json()["labels"] == []


async def test_a_revoked_key_is_refused_soon(tenant, client):
    began_s = time.monotonic()
    await tenant.control.revoke_api_keys(tenant.id, [])

    async def is_refused() -> bool:
        return (await client.get("/api/v1/query")).status_code == 401

    await until(is_refused)
    assert time.monotonic() - began_s < 5


async def test_a_tenant_that_is_being_deleted_is_forbidden_soon(tenant, client, role, query_key):
    await tenant.control.set_tenant(tenant.id, "draining", 30, {})

    async def is_forbidden() -> bool:
        return (await client.get("/api/v1/query")).status_code == 403

    await until(is_forbidden)
    assert (await refusal(role, query_key)).status_code == 403


async def test_a_tenant_over_its_concurrency_is_told_when_to_come_again(tenant, client_of):
    await tenant.control.set_tenant(tenant.id, "active", 30, {"quotas": {"queryConcurrency": 2}})
    client = await client_of(await tenant.api_key(keys.SCOPE_QUERY), tenant)
    async with holding(tenant, client, queries=2):
        answer = await client.get("/api/v1/query")

    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert "queryConcurrency" in answer.json()["error"]["hint"]


async def test_a_quota_that_is_raised_is_given_at_once(tenant, query_key, client_of):
    await client_of(query_key)
    await tenant.control.set_tenant(tenant.id, "active", 30, {"quotas": {"queryConcurrency": 14}})
    client = await client_of(query_key, tenant)

    async with holding(tenant, client, queries=14) as tasks:
        pass

    assert {task.result().status_code for task in tasks} == {200}
