"""`logweir keys` on the client's side: durations, what a key says, how keys are shown."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from answering import answering

from logweir.client import api, terminal
from logweir.client import keys as client_keys
from logweir.client.api import Target
from logweir.core import access, errors, keys
from logweir.core.names import PipelineId, TenantId

KEY = keys.ApiKey(TenantId("acme"), 7, PipelineId(3), keys.SCOPE_INGEST, 0, 1)
SHOWN = {
    "name": "web",
    "id": "7",
    "scopes": ["ingest"],
    "pipeline": None,
    "generation": 1,
    "origin": "api",
    "state": "active",
    "createdAt": "2026-01-31T12:30:59.5Z",
    "createdBy": "boss",
    "expiresAt": None,
    "revokedAt": None,
}


def text(**changes: object) -> str:
    return keys.text_of(msgspec.structs.replace(KEY, **changes), bytes(32))


# --- durations ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [("90d", 90 * 86_400), ("1h30m", 5400), ("0s", 0), ("2w", 14 * 86_400), ("1500ms", 1)],
)
def test_a_duration_has_so_many_seconds(given, expected):
    assert terminal.seconds(given) == expected


@pytest.mark.parametrize("given", ["", "1", "h", "1y", "-1h", "1h ", "1.5h"])
def test_what_is_no_duration_is_refused(given):
    with pytest.raises(errors.BadRequestError, match="no duration"):
        terminal.seconds(given)


def test_a_moment_is_so_far_ahead_or_stands_there():
    assert terminal.ahead("90d") - datetime.now(UTC) == pytest.approx(
        timedelta(days=90), abs=timedelta(seconds=5)
    )
    assert terminal.ahead("2030-01-31T12:00:00Z") == datetime(2030, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize("given", ["", "soon", "2030-01-31", "2030-01-31T12:00:00", "9" * 12 + "w"])
def test_what_is_no_moment_is_refused(given):
    with pytest.raises(errors.BadRequestError, match="no moment"):
        terminal.ahead(given)


# --- check ----------------------------------------------------------------------------------------


def test_a_key_says_whose_it_is_and_what_for():
    found = client_keys.checked(text())

    assert msgspec.to_builtins(found) == {
        "class": "ingest",
        "tenant": "acme",
        "pipeline": 3,
        "scopes": ["ingest"],
        "expiresAt": None,
        "isExpired": False,
        "id": "7",
        "revision": 1,
    }
    assert "expires    never" in client_keys.sheet(found)


def test_an_access_key_for_all_pipelines_says_so():
    scopes = keys.SCOPE_QUERY | keys.SCOPE_ADMIN
    sheet = client_keys.sheet(client_keys.checked(text(scopes=scopes, pipeline=PipelineId(0))))

    assert "class      access" in sheet
    assert "pipeline   all" in sheet
    assert "scopes     query, admin" in sheet


def test_a_key_says_that_it_has_expired():
    past, ahead = int(time.time()) - 5, int(time.time()) + 500

    assert client_keys.checked(text(expires_at_s=past)).is_expired
    assert not client_keys.checked(text(expires_at_s=ahead)).is_expired
    assert "(it has)" in client_keys.sheet(client_keys.checked(text(expires_at_s=past)))


@pytest.mark.parametrize("given", [text()[:-1], text().replace("a", "b", 3), "lwi_", text() + "a"])
def test_a_mistyped_key_is_told_to_be_one(given):
    with pytest.raises(access.MistypedKeyError, match="mistyped or cut"):
        client_keys.checked(given)


@pytest.mark.parametrize("given", ["", "hunter2", "lwx_" + text()[4:], "x" * 5000])
def test_what_is_no_key_is_told_to_be_none(given):
    with pytest.raises(errors.BadRequestError, match="no key of Logweir"):
        client_keys.checked(given)


# --- the API --------------------------------------------------------------------------------------


def test_a_table_shows_when_each_key_ends():
    rolled = {"state": "ending", "revokedAt": "2026-02-01T00:00:00Z"}
    expiring = {"expiresAt": "2026-03-01T00:00:00Z", "pipeline": "default"}
    answer = {"keys": [SHOWN, SHOWN | rolled | expiring, SHOWN | expiring]}
    with answering(lambda _: (200, answer)) as (url, asked):
        found = client_keys.listed(Target(url, "lwa_x"))
    heads, *lines = (line.split("  ") for line in client_keys.table(found).splitlines())
    ends = [[part.strip() for part in line if part.strip()][6] for line in lines]

    assert ends == ["never", "2026-02-01 00:00Z", "2026-03-01 00:00Z"]
    assert heads[0] == "NAME"
    assert asked[0].headers["authorization"] == "Bearer lwa_x"


def test_a_name_cannot_lead_to_another_address():
    with answering(lambda _: (204, b"")) as (url, asked):
        client_keys.revoke(Target(url, "lwa_x"), "../query?x=/y")

    assert asked[0].path == "/api/v1/keys/..%2Fquery%3Fx%3D%2Fy"


def test_a_refusal_is_told_in_the_words_of_the_server():
    error = {"error": {"code": "conflict", "message": "Taken.", "hint": "Choose another."}}
    with (
        answering(lambda _: (409, error)) as (url, _),
        pytest.raises(api.AnswerError, match=r"Taken\. Choose another\."),
    ):
        client_keys.create(Target(url, "lwa_x"), "web", ["ingest"], None, None)
