"""`logweir keys` with a running `up`: by who holds its folder, or with an admin key alone."""

from __future__ import annotations

import json
import secrets

import httpx2
import pytest
from upping import Up

from logweir.core import keys


@pytest.fixture
def up(shared_up: Up) -> Up:
    return shared_up


@pytest.fixture
def name() -> str:
    return f"key-{secrets.token_hex(4)}"


def states(up: Up, name: str) -> list[str]:
    found = json.loads(up.ok("keys", "list", "--all", "--json"))
    return [one["state"] for one in found if one["name"] == name]


def status(up: Up, key: str) -> int:
    return up.post("hello", key=key).status_code


def test_a_key_is_made_used_rolled_and_revoked_by_commands(up, name):
    ran = up.run("keys", "create", name, "--scope", "ingest", "--pipeline", "default")
    first = ran.stdout.strip()
    second = up.ok("keys", "roll", name, "--overlap", "1h").strip()
    used = [status(up, one) for one in (first, second)]
    rolled = states(up, name)
    up.ok("keys", "revoke", name)

    up.until(lambda: [status(up, one) for one in (first, second)] == [401, 401], 5)
    assert "shown this once" in ran.stderr
    assert (used, rolled, states(up, name)) == (
        [200, 200],
        ["active", "ending"],
        ["revoked", "revoked"],
    )
    assert first not in ran.stderr


def test_an_admin_key_is_enough_from_elsewhere(up, name):
    admin = up.ok("keys", "create", name, "--scope", "admin", "--expires", "1h").strip()
    where = ("--url", up.shown()["url"], "--key", admin)
    made = json.loads(up.ok("keys", "create", f"{name}-2", "--scope", "query", "--json", *where))
    for one in (f"{name}-2", name):
        up.ok("keys", "revoke", one, *where)

    assert made["createdBy"] == name
    assert keys.decode(made["key"]).key.scopes == keys.SCOPE_QUERY


def test_the_list_leaves_out_what_is_good_for_nothing_unless_it_is_asked_for(up, name):
    up.ok("keys", "create", name, "--scope", "query")
    listed = up.ok("keys", "list")
    up.ok("keys", "revoke", name)

    assert name in listed
    assert name not in up.ok("keys", "list")
    assert name in up.ok("keys", "list", "--all")
    assert "lwa_" not in listed


def test_no_admin_key_lies_in_a_file_of_the_folder(up, name):
    up.ok("keys", "create", name, "--scope", "query")
    up.ok("keys", "revoke", name)
    shown = [json.loads(path.read_text()) for path in (up.data / "keys").glob("*.json")]

    texts = [text for one in shown for text in one["keys"].values()]
    assert texts
    assert not [text for text in texts if keys.decode(text).key.permits(keys.SCOPE_ADMIN)]


def test_the_gateway_leads_to_the_keys_and_to_no_page_of_the_roles_own_port(up):
    url = up.shown()["url"]
    answer = httpx2.get(f"{url}/api/v1/keys")

    assert (answer.status_code, answer.headers["cache-control"]) == (401, "no-store")
    assert httpx2.get(f"{url}/api/v1/keys/x/metrics").status_code == 404
