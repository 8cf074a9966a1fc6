"""What is revoked is refused by every process within 5 seconds, also after a crash between."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import msgspec
import pytest
import world
from builders import record
from keying import made
from redis import exceptions
from serving import Role, serving, until
from tailing import watching

from logweir.auth import app, teller
from logweir.backends import provision, redis_client
from logweir.core import keys, names
from logweir.core.binding import IngestBinding, JournalServer, Login, QueryBinding
from logweir.ingest import app as ingest_app
from logweir.query import app as query_app
from logweir.standalone import servers

LIMIT_S = 5.0


def cfg(tenant: world.Tenant) -> str:
    return names.journal_tenant(tenant.id) + "cfg"


async def told(tenant: world.Tenant) -> dict[str, str]:
    """What the tenant's journal was told of keys."""
    found = await tenant.redis.hgetall(cfg(tenant))
    return {name.decode(): value.decode() for name, value in found.items()}


async def until_told(tenant: world.Tenant, *fields: str) -> None:
    async def is_told() -> bool:
        return set(fields) <= (await told(tenant)).keys()

    await until(is_told)


async def row_of(tenant: world.Tenant, new: dict[str, Any]) -> str | None:
    """The id of a key that is still in the control schema."""
    rows = await tenant.control.api_keys_of(tenant.id)
    return next((str(one.id) for one in rows if str(one.id) == new["id"]), None)


# --- every process --------------------------------------------------------------------------------


@pytest.fixture
async def every_role(binding, tenant, roots, tmp_path) -> AsyncIterator[tuple[Role, Role, Role]]:
    """Auth, ingest and query, which look for news as often as they do in earnest."""
    query = QueryBinding(
        store=binding.store,
        journal=binding.journal,
        control_login=Login(provision.QUERY, provision.platform_password(roots, provision.QUERY)),
        read_roots={"1": roots.read.hex()},
        sign_roots={"1": roots.sign.hex()},
    )
    ingest = IngestBinding((tenant.ingest_binding(),))
    async with (
        serving(app.run, tmp_path, binding, "auth") as one,
        serving(ingest_app.run, tmp_path, ingest, "ingest") as two,
        serving(query_app.run, tmp_path, query, "query") as three,
    ):
        yield one, two, three


async def refused_after_s(ask, began_s: float) -> float:
    """Ask without a pause until the answer is 401; nothing is answered otherwise after that."""
    while (status := await ask()) == 200:
        await asyncio.sleep(0.01)
    assert status == 401
    took_s = time.monotonic() - began_s
    for _ in range(20):
        assert await ask() == 401
    return took_s


async def test_a_revoked_key_is_refused_by_every_process_within_five_seconds(every_role, tenant):
    auth, ingest, query = every_role
    admin = await tenant.api_key(keys.SCOPE_ADMIN, name="boss")
    async with (
        httpx2.AsyncClient(base_url=auth.url, headers={"x-api-key": admin}) as client,
        httpx2.AsyncClient() as http,
    ):
        texts = {
            scope: (await made(client, scope, scopes=[scope]))["key"]
            for scope in ("ingest", "query", "admin")
        }

        async def send() -> int:
            own = {"x-api-key": texts["ingest"]}
            answer = await http.post(
                f"{ingest.url}/t/{tenant.id}/default/ingest", json=record(), headers=own
            )
            return answer.status_code

        async def read() -> int:
            own = {"x-api-key": texts["query"]}
            return (await http.get(f"{query.url}/api/v1/query", headers=own)).status_code

        async def administer() -> int:
            own = {"x-api-key": texts["admin"]}
            return (await http.get(f"{auth.url}/api/v1/keys", headers=own)).status_code

        calls = (send, read, administer)
        for call in calls:
            assert await call() == 200
        async with watching(query, texts["query"]) as watcher:
            await watcher.until_live()
            began_s = time.monotonic()
            asking = [asyncio.create_task(refused_after_s(call, began_s)) for call in calls]
            for name in texts:
                assert (await client.delete(f"/api/v1/keys/{name}")).status_code == 204
            code = await watcher.until_closed()
            tail_s = time.monotonic() - began_s
            took_s = await asyncio.gather(*asking)

    print("refused after", [round(one, 2) for one in (*took_s, tail_s)])
    assert code == 1008
    assert max(*took_s, tail_s) < LIMIT_S


async def test_a_tail_ends_when_its_key_expires(every_role, tenant):
    _, _, query = every_role
    key = keys.ApiKey(tenant.id, 1, names.PipelineId(0), keys.SCOPE_QUERY, int(time.time()) + 2, 1)
    async with watching(query, tenant.key_text(key)) as watcher:
        await watcher.until_live()
        code = await watcher.until_closed()

    assert (code, watcher.problem["code"]) == (1008, "unauthorized")
    assert key.expires_at_s <= time.time() < key.expires_at_s + LIMIT_S


async def test_an_old_generation_is_good_until_its_overlap_ends_though_auth_is_gone(
    every_role, tenant
):
    auth, ingest, _ = every_role
    admin = await tenant.api_key(keys.SCOPE_ADMIN, name="boss")
    async with (
        httpx2.AsyncClient(base_url=auth.url, headers={"x-api-key": admin}) as client,
        httpx2.AsyncClient() as http,
    ):
        old = (await made(client, "web"))["key"]
        answer = await client.post("/api/v1/keys/web/roll", json={"overlapSeconds": 6})
        rolled_s = time.monotonic()
        new = answer.json()["key"]
        auth.life.stopping.set()

        async def send(key: str) -> int:
            url = f"{ingest.url}/t/{tenant.id}/default/ingest"
            return (await http.post(url, json=record(), headers={"x-api-key": key})).status_code

        both = [await send(old), await send(new)]
        took_s = await refused_after_s(lambda: send(old), rolled_s)
        after = await send(new)

    assert (both, after) == ([200, 200], 200)
    assert 5 <= took_s < 6 + LIMIT_S


# --- what heals -----------------------------------------------------------------------------------


async def test_what_was_revoked_by_a_process_that_died_then_is_told_all_the_same(client, tenant):
    new = await made(client, "web")
    # As after a crash: the control schema knows it, the journal was not told.
    await tenant.control._rows(
        "update logweir.api_keys set revoked_at = now() where id = %s", [int(new["id"])]
    )

    await until_told(tenant, f"r:{new['id']}")


@pytest.fixture
def often(monkeypatch) -> None:
    """What the role does now and then it does all the time; to be asked for before the role."""
    monkeypatch.setattr(teller, "AGAIN_S", 0.2)
    monkeypatch.setattr(teller, "PRUNE_S", 0.1)


async def test_a_journal_that_has_forgotten_is_told_again(often, client, tenant):
    new = await made(client, "web")
    await client.delete("/api/v1/keys/web")
    await until_told(tenant, f"r:{new['id']}")
    for _ in range(3):  # a turn may have been under way at the first time
        await tenant.redis.unlink(cfg(tenant))
        await until_told(tenant, f"r:{new['id']}")


async def test_operator_and_auth_may_tell_with_what_each_has_read_before(client, tenant):
    first, second = await made(client, "one"), await made(client, "two")
    await client.delete("/api/v1/keys/one")
    await client.delete("/api/v1/keys/two")
    # An operator that read the keys before both of these.
    await provision.publish_revocations(tenant.redis, tenant.id, [], {int(first["id"]): 1 << 40})

    assert {f"r:{first['id']}", f"r:{second['id']}"} <= (await told(tenant)).keys()
    assert (await tenant.appender().revocations()).revoked >= {int(first["id"]), int(second["id"])}


async def test_a_journal_that_hangs_holds_up_no_revocation_in_the_control_schema(
    binding, make_tenant, start_journal, roots, tmp_path, monkeypatch
):
    monkeypatch.setattr(teller, "TELL_TIMEOUT_S", 0.3)
    server = start_journal()
    tenant = await make_tenant(server)
    await provision.bootstrap_auth_user(tenant.redis, roots)
    address = JournalServer(servers.LOOPBACK, server.port)
    admin = await tenant.api_key(keys.SCOPE_ADMIN, name="boss")
    own = msgspec.structs.replace(binding, journal=address)
    async with (
        serving(app.run, tmp_path, own, "auth") as role,
        httpx2.AsyncClient(base_url=role.url, headers={"x-api-key": admin}) as client,
    ):
        new = await made(client, "web")
        os.kill(server.process.pid, signal.SIGSTOP)
        answer = await client.delete("/api/v1/keys/web")
        [row] = [o for o in await tenant.control.api_keys_of(tenant.id) if o.name == "web"]
        async with httpx2.AsyncClient(base_url=role.ops_url) as ops:
            metrics = (await ops.get("/metrics")).text
            ready = await ops.get("/readyz")
        os.kill(server.process.pid, signal.SIGCONT)
        await until_told(tenant, f"r:{new['id']}")

    assert (answer.status_code, row.is_revoked, ready.status_code) == (503, True, 200)
    assert "revoked, but ingest could not be told" in answer.json()["error"]["message"]
    [untold] = re.findall(r"^logweir_auth_untold_tenants (.+)$", metrics, re.MULTILINE)
    assert float(untold) >= 1


# --- what is forgotten ----------------------------------------------------------------------------


async def test_a_revocation_is_forgotten_once_the_text_of_its_key_has_expired(
    often, client, tenant
):
    old, young, lasting = [
        await made(client, name, expiresAt=ends)
        for name, ends in (
            ("old", "2090-01-01T00:00:00Z"),
            ("young", "2090-01-01T00:00:00Z"),
            ("lasting", None),
        )
    ]
    for name in ("old", "young", "lasting"):
        await client.delete(f"/api/v1/keys/{name}")
    await until_told(tenant, *(f"r:{one['id']}" for one in (old, young, lasting)))
    for new, age in ((old, "25 h"), (young, "23 h")):
        await tenant.control._rows(
            "update logweir.api_keys set expires_at = now() - %s::interval where id = %s",
            [age, int(new["id"])],
        )

    async def is_forgotten() -> bool:
        return await row_of(tenant, old) is None

    await until(is_forgotten)
    keys_told = (await told(tenant)).keys() - {"told"}
    assert keys_told == {f"r:{young['id']}", f"r:{lasting['id']}"}
    assert await row_of(tenant, young)
    assert await row_of(tenant, lasting)


async def test_a_key_of_the_resource_that_has_expired_is_not_forgotten_while_it_stands_there(
    often, client, tenant
):
    await tenant.api_key(keys.SCOPE_INGEST, name="theirs")
    gone = await made(client, "gone", expiresAt="2090-01-01T00:00:00Z")
    await tenant.control._rows(
        "update logweir.api_keys set expires_at = now() - interval '9 days' where tenant = %s"
        " and name in ('theirs', 'gone')",
        [tenant.id],
    )

    async def is_forgotten() -> bool:
        return await row_of(tenant, gone) is None

    await until(is_forgotten)
    rows = await tenant.control.api_keys_of(tenant.id)
    assert [one.name for one in rows] == ["boss", "theirs"]


async def test_a_key_that_could_still_be_good_is_not_deleted_whoever_asks(client, tenant, binding):
    from logweir.backends import store
    from logweir.backends.api_keys import ApiKeys

    new = await made(client, "web")
    door = ApiKeys(store.conninfo(binding.store, binding.control_login, "logweir test"))
    await door.forget([int(new["id"])])
    await door.close()

    assert await row_of(tenant, new)


# --- the role's own logins ------------------------------------------------------------------------

JOURNAL_MAY_NOT = {
    "read what is revoked": lambda t: ("HGETALL", cfg(t)),
    "read one field of it": lambda t: ("HGET", cfg(t), "r:1"),
    "drop all revocations": lambda t: ("DEL", cfg(t)),
    "let them expire": lambda t: ("EXPIRE", cfg(t), "1"),
    "open a closed tenant": lambda t: ("HSET", cfg(t)[:-3] + "m", "state", "active"),
    "change counters": lambda t: ("HSET", cfg(t)[:-3] + "c", "inflight", "0"),
    "append": lambda t: ("XADD", cfg(t)[:-3] + "1:q", "*", "a", "b"),
    "read a stream": lambda t: ("XRANGE", cfg(t)[:-3] + "1:q", "-", "+"),
    "write elsewhere": lambda t: ("HSET", "mine:cfg", "a", "b"),
    "run a function": lambda t: ("FCALL", "lw_append", "1", cfg(t), "x"),
    "see the users": lambda t: ("ACL", "LIST"),
    "list all keys": lambda t: ("KEYS", "*"),
    "see the settings": lambda t: ("CONFIG", "GET", "*"),
    "empty the server": lambda t: ("FLUSHALL",),
    "publish": lambda t: ("PUBLISH", cfg(t)[:-3] + "1:l", "x"),
}


@pytest.mark.parametrize("what", JOURNAL_MAY_NOT)
async def test_in_the_journal_auth_may_not(tenant, binding, what):
    own = redis_client.client(binding.journal, binding.journal_login)
    with pytest.raises(exceptions.NoPermissionError):
        await own.execute_command(*JOURNAL_MAY_NOT[what](tenant))
    await own.aclose()


async def test_the_logins_of_auth_come_from_a_root_that_no_other_role_has(roots):
    for name in (provision.AUTH, provision.JOURNAL_AUTH):
        found = provision.platform_password(roots, name)
        others = (roots.sign, roots.read, roots.maintain)
        assert found not in [keys.password(one, keys.PLATFORM, name, 1) for one in others]
