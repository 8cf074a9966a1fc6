"""A tenant that is deleted under a running `logweir up`, while records come in."""

from __future__ import annotations

import json
import os
import signal

import psycopg
import pytest
from reconciling import pipeline, tenant, text
from upping import Up


def store(up: Up) -> psycopg.Connection:
    """The store of the running `up`, as its superuser."""
    secret = json.loads((up.data / "secrets.json").read_text())["postgres_password"]
    port = json.loads((up.data / "ports.json").read_text())["postgres"]
    return psycopg.connect(f"postgresql://postgres:{secret}@127.0.0.1:{port}/logweir")


def keys_of(up: Up, name: str) -> dict:
    """A tenant's keys and addresses, once its pipeline is served."""

    def keys() -> dict | None:
        ran = up.run("get", "keys", name)
        found = json.loads(ran.stdout) if ran.returncode == 0 else {}
        return found if found.get("pipelines") else None

    return up.until(keys)


@pytest.mark.slow
def test_a_deleted_tenant_refuses_drains_is_kept_and_comes_back_with_all_its_records(shared_up):
    up = shared_up
    whole = text(tenant("going"), pipeline(of="going"))
    up.ok("apply", "-f", "-", given=whole)
    found = keys_of(up, "going")
    accepted = 0

    def post(keys: dict) -> int:
        nonlocal accepted
        address = f"{keys['url']}/web/ingest"
        status = up.post("hello", url=address, key=keys["keys"]["in"]).status_code
        accepted += status == 200
        return status

    up.until(lambda: post(found) == 200)
    collector = up.process_of("collector")["pid"]
    os.kill(collector, signal.SIGSTOP)
    try:
        assert post(found) == 200
        up.ok("delete", "lp", "web", "--no-wait")
        deleting = up.popen("delete", "lt", "going")
        up.until(lambda: post(found) in (401, 403))
        up.until(lambda: "draining: " in up.ok("get", "lt", "going", "-o", "wide"))
        is_waiting = deleting.poll() is None
    finally:
        os.kill(collector, signal.SIGCONT)
    _, said = deleting.communicate(timeout=60)
    row = "select state, lost_blocks from logweir.tenants where id = %s"
    with store(up) as connection:
        kept = connection.execute(row, [found["tenant"]]).fetchone()

    assert (is_waiting, deleting.returncode, kept) == (True, 0, ("retained", 0))
    assert "logtenant/going: draining: " in said
    assert up.process_of("collector")["pid"] == collector
    assert post(found) == 401

    up.ok("apply", "-f", "-", given=whole)
    again = keys_of(up, "going")
    up.until(lambda: post(again) == 200)

    assert again["tenant"] == found["tenant"]
    assert not set(again["keys"].values()) & set(found["keys"].values())
    up.until(lambda: up.messages("{}", "--tenant", "going") == ["hello"] * accepted)
    up.ok("delete", "-f", "-", given=whole)
