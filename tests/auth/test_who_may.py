"""Who may ask the key API, and what it says to all others and of other addresses."""

from __future__ import annotations

import json

import httpx2
import pytest
from keying import listed

from logweir.auth.app import Auth, make_app
from logweir.core import keys
from logweir.core.names import PipelineId

CALLS = [
    ("POST", "/api/v1/keys"),
    ("GET", "/api/v1/keys"),
    ("GET", "/api/v1/keys/boss"),
    ("DELETE", "/api/v1/keys/boss"),
    ("POST", "/api/v1/keys/boss/roll"),
]


async def test_the_calls_of_these_tests_are_all_that_there_are(role):
    found = {
        (method, route.path.replace("{name}", "boss"))
        for route in make_app(Auth()).routes
        for method in route.methods
    }
    assert found == set(CALLS)


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_every_call_asks_for_a_key(role, method, path):
    async with httpx2.AsyncClient(base_url=role.url) as nobody:
        answer = await nobody.request(method, path)

    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(("method", "path"), CALLS)
@pytest.mark.parametrize(
    ("scopes", "of_a_pipeline"),
    [
        pytest.param(keys.SCOPE_INGEST, False, id="ingest"),
        pytest.param(keys.SCOPE_QUERY, False, id="query"),
        pytest.param(keys.SCOPE_ADMIN, True, id="admin of a pipeline"),
    ],
)
async def test_no_call_is_answered_to_a_lesser_key(
    tenant, client, client_of, method, path, scopes, of_a_pipeline
):
    pipeline = tenant.pipeline if of_a_pipeline else PipelineId(0)
    lesser = await client_of(await tenant.api_key(scopes, pipeline))
    answer = await lesser.request(method, path, json={"name": "x", "scopes": ["admin"]})

    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    assert [one["name"] for one in await listed(client) if one["name"] in ("boss", "x")] == ["boss"]


async def test_a_parameter_is_refused_as_no_call_has_any(client):
    answer = await client.get("/api/v1/keys", params={"tenant": "other"})

    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/api/v1/keys", 405),
        ("PATCH", "/api/v1/keys/boss", 405),
        ("GET", "/api/v1/keys/", 404),
        ("GET", "/api/v1/other", 404),
        ("GET", "/metrics", 404),
    ],
)
async def test_what_is_not_there_has_an_error_of_the_one_shape(client, method, path, status):
    answer = await client.request(method, path)

    assert answer.status_code == status
    assert set(json.loads(answer.content)["error"]) == {"code", "message", "hint"}
