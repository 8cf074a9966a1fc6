"""Keys over HTTP: made once, listed without their texts, rolled with an overlap, revoked."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import httpx2
import pytest
from keying import create, listed, made

from logweir.auth import forms
from logweir.backends import api_keys
from logweir.core import keys

FIELDS = {
    *("name", "id", "scopes", "pipeline", "generation", "origin", "state"),
    *("createdAt", "createdBy", "expiresAt", "revokedAt"),
}


async def states(client: httpx2.AsyncClient, name: str = "web") -> list[tuple[int, str]]:
    """Generation and state of each key of a name, the newest first."""
    return [
        (one["generation"], one["state"]) for one in await listed(client) if one["name"] == name
    ]


def what(text: str) -> keys.ApiKey:
    found = keys.decode(text)
    assert found is not None
    return found.key


def in_days(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat()


# --- create ---------------------------------------------------------------------------------------


async def test_a_new_key_is_answered_with_its_text_and_nobody_may_keep_the_answer(client, tenant):
    answer = await create(client)
    body = answer.json()

    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    assert body.keys() == FIELDS | {"key"}
    assert (body["name"], body["scopes"], body["pipeline"]) == ("web", ["ingest"], None)
    assert (body["generation"], body["origin"], body["state"]) == (1, "api", "active")
    assert body["createdBy"] == "boss"
    key = what(body["key"])
    assert (key.tenant, str(key.key_id), key.scopes) == (tenant.id, body["id"], keys.SCOPE_INGEST)
    assert tenant.key_text(key) == body["key"]


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        (["ingest"], keys.SCOPE_INGEST),
        (["query"], keys.SCOPE_QUERY),
        (["admin"], keys.SCOPE_ADMIN),
        (["query", "admin"], keys.SCOPE_QUERY | keys.SCOPE_ADMIN),
    ],
)
async def test_an_admin_makes_keys_of_every_scope(client, scopes, expected):
    body = await made(client, scopes=scopes)

    assert what(body["key"]).scopes == expected
    assert body["scopes"] == scopes


async def test_a_key_may_be_for_one_pipeline_and_a_time(client, tenant):
    body = await made(client, pipeline="default", expiresAt=in_days(90))
    key = what(body["key"])

    assert (body["pipeline"], key.pipeline) == ("default", tenant.pipeline)
    assert key.expires_at_s == int(datetime.fromisoformat(body["expiresAt"]).timestamp())


@pytest.mark.parametrize(
    ("body", "named"),
    [
        pytest.param({"name": "Web"}, "name", id="a name with a capital"),
        pytest.param({"name": "x" * 41}, "name", id="a name too long"),
        pytest.param({"name": "web\n"}, "name", id="a line break in the name"),
        pytest.param({"name": "a/b"}, "name", id="a slash in the name"),
        pytest.param({"name": ""}, "name", id="no name"),
        pytest.param({"scopes": []}, "scopes", id="no scope"),
        pytest.param({"scopes": ["root"]}, "scopes", id="an unknown scope"),
        pytest.param({"scopes": "query"}, "scopes", id="a text for scopes"),
        pytest.param({"scopes": ["ingest", "query"]}, "ingest", id="ingest with another scope"),
        pytest.param({"pipeline": "\x00"}, "pipeline", id="a NUL for a pipeline"),
        pytest.param({"pipeline": ""}, "pipeline", id="an empty pipeline"),
        pytest.param({"pipeline": "nowhere"}, "nowhere", id="a pipeline that is not there"),
        pytest.param(
            {"scopes": ["admin"], "pipeline": "default"}, "administer", id="an admin of a pipeline"
        ),
        pytest.param({"expiresAt": "2020-01-01T00:00:00Z"}, "expiresAt", id="an end in the past"),
        pytest.param({"expiresAt": "2999-01-01T00:00:00Z"}, "expiresAt", id="an end too far"),
        pytest.param({"expiresAt": "2030-01-01T00:00:00"}, "expiresAt", id="no time zone"),
        pytest.param({"expiresAt": 5}, "expiresAt", id="a number for the end"),
        pytest.param({"tenant": "other"}, "tenant", id="an unknown field"),
        pytest.param({"key": "lwi_mine"}, "key", id="a text of one's own"),
    ],
)
async def test_what_is_wrong_with_a_new_key_is_named_and_nothing_is_made(client, body, named):
    answer = await create(client, **body)
    error = answer.json()["error"]

    assert (answer.status_code, error["code"]) == (400, "bad_request")
    assert named in error["message"]
    assert answer.headers["cache-control"] == "no-store"
    assert [one["name"] for one in await listed(client)] == ["boss"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        pytest.param(b"", 400, id="nothing"),
        pytest.param(b"{", 400, id="half of it"),
        pytest.param(b'{"name": "\xff"}', 400, id="no UTF-8"),
        pytest.param(b"[" * 5000, 400, id="deep"),
        pytest.param(b" " * (forms.MAX_BODY_BYTES + 1), 413, id="too large"),
    ],
)
async def test_a_body_that_is_none_is_refused(client, content, status):
    answer = await client.post("/api/v1/keys", content=content)

    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"code", "message", "hint"}


async def test_a_name_in_use_is_refused_and_free_again_once_its_key_is_revoked(client):
    await made(client)
    taken = await create(client)
    await client.delete("/api/v1/keys/web")
    again = await create(client)

    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "conflict")
    assert again.status_code == 201


async def test_the_name_of_a_key_that_has_expired_is_free(client, tenant):
    await made(client, expiresAt=in_days(1))
    await tenant.control._rows(
        "update logweir.api_keys set expires_at = now() - interval '1 s' where tenant = %s"
        " and name = 'web'",
        [tenant.id],
    )

    assert await states(client) == [(1, "expired")]
    assert (await create(client)).status_code == 201


async def test_of_many_that_want_one_name_at_once_one_gets_it(client):
    answers = await asyncio.gather(*(create(client) for _ in range(8)))

    assert sorted(one.status_code for one in answers) == [201] + [409] * 7


async def test_a_tenant_has_no_more_keys_than_may_be(client, monkeypatch):
    monkeypatch.setattr(api_keys, "MAX_KEYS", 4)
    answers = await asyncio.gather(*(create(client, f"key-{number}") for number in range(8)))
    await client.delete("/api/v1/keys/" + answers[0].json().get("name", "key-0"))

    assert sorted(one.status_code for one in answers) == [201] * 3 + [409] * 5
    assert "in force" in next(one for one in answers if one.is_error).json()["error"]["message"]


async def test_revoked_keys_that_must_be_remembered_are_bounded_too(client, monkeypatch):
    monkeypatch.setattr(api_keys, "MAX_ROWS", 4)
    for _ in range(3):
        await made(client)
        await client.delete("/api/v1/keys/web")
    answer = await create(client)

    assert answer.status_code == 409
    assert "expiresAt" in answer.json()["error"]["hint"]


# --- list, get ------------------------------------------------------------------------------------


async def test_no_answer_but_the_first_has_the_text(client):
    text = (await made(client))["key"]
    answers = [await client.get("/api/v1/keys"), await client.get("/api/v1/keys/web")]

    for answer in answers:
        assert answer.headers["cache-control"] == "no-store"
        assert text not in answer.text
        assert "lwi_" not in answer.text
    assert answers[0].json()["keys"][1] == answers[1].json()
    assert answers[1].json().keys() == FIELDS


async def test_keys_of_the_resource_are_listed_beside_those_of_the_api(client):
    await made(client)

    assert {one["name"]: one["origin"] for one in await listed(client)} == {
        "boss": "resource",
        "web": "api",
    }


async def test_a_tenant_sees_and_changes_no_key_of_another(client, make_tenant, client_of):
    other = await make_tenant()
    mallory = await client_of(await other.api_key(keys.SCOPE_ADMIN, name="mallory"))
    text = (await made(client))["key"]

    answers = [
        await mallory.get("/api/v1/keys/web"),
        await mallory.delete("/api/v1/keys/web"),
        await mallory.post("/api/v1/keys/web/roll"),
    ]
    unknown = await mallory.get("/api/v1/keys/nobody")

    assert [one["name"] for one in await listed(mallory)] == ["mallory"]
    assert [one.status_code for one in answers] == [404] * 3
    assert answers[0].text.replace("web", "nobody") == unknown.text
    assert await states(client) == [(1, "active")]
    assert text


# --- roll -----------------------------------------------------------------------------------------


async def test_a_rolled_key_lives_on_beside_the_new_one_until_its_overlap_ends(client):
    first = await made(client, pipeline="default")
    answer = await client.post("/api/v1/keys/web/roll", json={"overlapSeconds": 600})
    second = answer.json()

    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    assert what(second["key"]).key_id != what(first["key"]).key_id
    assert (second["generation"], second["pipeline"]) == (2, "default")
    new, old = [one for one in await listed(client) if one["name"] == "web"]
    assert (new["state"], new["revokedAt"]) == ("active", None)
    left = datetime.fromisoformat(old["revokedAt"]) - datetime.now(UTC)
    assert (old["id"], old["state"]) == (first["id"], "ending")
    assert timedelta(seconds=590) < left <= timedelta(seconds=600)


async def test_without_a_word_the_overlap_is_a_day(client):
    await made(client)
    await client.post("/api/v1/keys/web/roll")
    old = (await listed(client))[-1]

    left = datetime.fromisoformat(old["revokedAt"]) - datetime.now(UTC)
    assert timedelta(hours=23) < left <= timedelta(hours=24)


async def test_without_an_overlap_all_generations_of_before_end_at_once(client):
    await made(client)
    await client.post("/api/v1/keys/web/roll")
    await client.post("/api/v1/keys/web/roll", json={"overlapSeconds": 0})

    assert await states(client) == [(3, "active"), (2, "revoked"), (1, "revoked")]


async def test_a_second_roll_lengthens_no_overlap(client):
    await made(client)
    await client.post("/api/v1/keys/web/roll", json={"overlapSeconds": 60})
    before = (await listed(client))[-1]["revokedAt"]
    await client.post("/api/v1/keys/web/roll", json={"overlapSeconds": 600})

    assert (await listed(client))[-1]["revokedAt"] == before


async def test_a_rolled_key_lives_as_long_as_the_one_before_was_to_live(client, tenant):
    first = await made(client, expiresAt=in_days(90))
    await tenant.control._rows(
        "update logweir.api_keys set created_at = created_at - interval '80 days',"
        " expires_at = expires_at - interval '80 days' where id = %s",
        [int(first["id"])],
    )
    rolled = (await client.post("/api/v1/keys/web/roll")).json()
    forever = (await client.post("/api/v1/keys/web/roll", json={"expiresAt": None})).json()

    ahead = datetime.fromisoformat(rolled["expiresAt"]) - datetime.now(UTC)
    assert timedelta(days=89.9) < ahead < timedelta(days=90.1)
    assert what(rolled["key"]).expires_at_s > 0
    assert what(forever["key"]).expires_at_s == 0


@pytest.mark.parametrize(
    "body",
    [
        {"overlapSeconds": -1},
        {"overlapSeconds": forms.MAX_OVERLAP_S + 1},
        {"overlapSeconds": 1.5},
        {"overlap": 1},
        {"expiresAt": "2020-01-01T00:00:00Z"},
    ],
)
async def test_a_roll_that_is_not_understood_changes_nothing(client, body):
    await made(client)
    answer = await client.post("/api/v1/keys/web/roll", json=body)

    assert answer.status_code == 400
    assert await states(client) == [(1, "active")]


async def test_rolls_at_once_follow_each_other(client):
    await made(client)
    answers = await asyncio.gather(*(client.post("/api/v1/keys/web/roll") for _ in range(4)))

    assert sorted(one.json()["generation"] for one in answers) == [2, 3, 4, 5]
    assert (await states(client))[0] == (5, "active")


async def test_a_key_that_is_revoked_is_not_rolled(client):
    await made(client)
    await client.delete("/api/v1/keys/web")

    assert (await client.post("/api/v1/keys/web/roll")).status_code == 404


# --- revoke ---------------------------------------------------------------------------------------


async def test_a_revoked_key_is_said_to_be_so_and_may_be_revoked_again(client):
    await made(client)
    answers = [await client.delete("/api/v1/keys/web") for _ in range(2)]

    assert [one.status_code for one in answers] == [204, 204]
    assert answers[0].headers["cache-control"] == "no-store"
    assert await states(client) == [(1, "revoked")]


async def test_a_revocation_ends_every_generation(client):
    await made(client)
    await client.post("/api/v1/keys/web/roll")
    await client.delete("/api/v1/keys/web")

    assert await states(client) == [(2, "revoked"), (1, "revoked")]


async def test_what_was_never_there_is_not_found(client):
    answers = [
        await client.get("/api/v1/keys/none"),
        await client.delete("/api/v1/keys/none"),
        await client.post("/api/v1/keys/none/roll"),
    ]

    assert {(one.status_code, one.json()["error"]["code"]) for one in answers} == {
        (404, "not_found")
    }


@pytest.mark.parametrize("name", ["%00", "%ff", "Web", "a%2Fb", "x" * 41, "%F0%9F%94%91", "web%0A"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_name_that_no_key_can_have_is_not_found(client, name, method):
    answer = await client.request(method, f"/api/v1/keys/{name}")

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_an_admin_key_may_revoke_itself_and_is_refused_then(client, client_of, tenant):
    text = (await made(client, "second", scopes=["admin"]))["key"]
    second = await client_of(text)

    assert (await second.delete("/api/v1/keys/second")).status_code == 204

    async with asyncio.timeout(5):
        while (await second.get("/api/v1/keys")).status_code != 401:
            await asyncio.sleep(0.02)


# --- keys of the resource -------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["delete", "roll", "create"])
async def test_a_key_of_the_resource_is_changed_in_the_resource_alone(client, change):
    answer = {
        "delete": lambda: client.delete("/api/v1/keys/boss"),
        "roll": lambda: client.post("/api/v1/keys/boss/roll"),
        "create": lambda: create(client, "boss"),
    }[change]
    refused = await answer()

    assert refused.status_code == 409
    assert change == "create" or "spec.apiKeys" in refused.json()["error"]["hint"]
    assert await states(client, "boss") == [(1, "active")]


async def test_the_resource_revokes_no_key_that_was_made_over_the_api(client, tenant):
    await made(client)
    await tenant.control.revoke_api_keys(tenant.id, ["boss"])

    assert await states(client) == [(1, "active")]


async def test_a_resource_that_names_a_key_of_the_api_takes_its_name(client, tenant):
    await made(client)
    await client.post("/api/v1/keys/web/roll")
    await tenant.api_key(keys.SCOPE_INGEST, name="web")

    found = {(one["origin"], one["state"]) for one in await listed(client) if one["name"] == "web"}
    assert found == {("resource", "active"), ("api", "revoked")}
    assert (await client.delete("/api/v1/keys/web")).status_code == 409


async def test_keys_of_the_api_go_with_their_tenant(client, tenant):
    await made(client)
    await client.post("/api/v1/keys/web/roll")
    await tenant.control.revoke_all_api_keys(tenant.id)

    rows = await tenant.control.api_keys_of(tenant.id)
    assert [one.is_revoked for one in rows] == [True] * 3


# --- what is kept ---------------------------------------------------------------------------------


async def test_no_key_stands_in_the_database_or_a_log(client, tenant, caplog):
    texts = [(await made(client))["key"]]
    texts.append((await client.post("/api/v1/keys/web/roll")).json()["key"])
    rows = await tenant.control._rows(
        "select k::text from logweir.api_keys k where tenant = %s", [tenant.id]
    )

    for text in texts:
        assert text not in caplog.text
        assert not [one for one in rows if text[4:40] in str(one)]
