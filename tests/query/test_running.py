"""The role as a process: clients that go, servers that go, its own pages, its end."""

from __future__ import annotations

import asyncio
import contextlib
import time

import httpx2
import msgspec
import pytest
import world
from builders import records
from draining import connect, value
from prometheus_client.parser import text_string_to_metric_families
from querying import holding, waiting
from serving import serving, until
from tailing import Producer, exactly_once, listeners, watching

from logweir.backends import redis_client
from logweir.core import access, errors, keys
from logweir.core.binding import JournalServer, Login
from logweir.query import app, hub
from logweir.query.engine import Budget, CancelledQueryError, Run
from logweir.runtime import metrics, watch
from logweir.runtime.life import Life
from logweir.runtime.settings import Listen, Settings
from logweir.standalone import accounts, binaries, servers
from logweir.standalone.valkey import Valkey


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def connections_in(tenant: world.Tenant, state: str) -> int:
    query = "select count(*) from pg_stat_activity where usename = %s and state = %s"
    found: int = value(tenant, query, [tenant.store_login("r").user, state])
    return found


# ---- clients that go -------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_client_that_goes_ends_its_query(role, tenant, client, query_key, method):
    gone = httpx2.AsyncClient(base_url=role.url, headers=bearer(query_key), timeout=30)

    async def nobody_waits() -> bool:
        return await waiting(tenant, 0)

    async with holding(tenant, client, queries=0):
        asked = asyncio.create_task(gone.request(method, "/api/v1/query"))
        await until(lambda: waiting(tenant, 1))
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
        await gone.aclose()
        await until(nobody_waits)

    async def is_back() -> bool:
        return await connections_in(tenant, "idle") >= 1

    await until(is_back)
    assert await connections_in(tenant, "idle in transaction") == 0
    assert (await client.get("/api/v1/query")).status_code == 200


async def test_a_scan_that_nobody_waits_for_ends_at_its_next_segment():
    run = Run(Budget(10, 1 << 30))
    run.check()

    run.cancel()

    with pytest.raises(CancelledQueryError):
        run.check()


async def test_many_first_queries_at_once_are_all_answered(client, tenant):
    await tenant.store_records(records(3))

    answers = await asyncio.gather(*(client.get("/api/v1/query") for _ in range(8)))

    assert {(one.status_code, len(one.json()["records"])) for one in answers} == {(200, 3)}


# ---- servers that go -------------------------------------------------------------------------


@pytest.fixture
async def on_spare(spare_postgres, valkey, roots):
    """A tenant in the PostgreSQL that may be stopped."""
    client = redis_client.client(
        JournalServer(servers.LOOPBACK, valkey.port), Login("lw_operator", "operator")
    )
    found = await world.make_tenant("test-spare-query", spare_postgres, valkey, client, roots)
    yield found
    await found.close()


async def test_a_store_that_is_down_is_said_and_found_again(
    on_spare, spare_postgres, servers_folder, binding, tmp_path, monkeypatch
):
    monkeypatch.setattr("logweir.backends.segments_reader.CONNECTION_WAIT_S", 1.0)
    monkeypatch.setattr(hub, "ATTACH_S", 0.5)
    monkeypatch.setattr(watch, "POLL_S", 0.05)
    key = await on_spare.api_key(keys.SCOPE_QUERY)
    await on_spare.store_records(records(3))
    own = msgspec.structs.replace(binding, store=world.store_server(spare_postgres))
    async with (
        serving(app.run, tmp_path, own, "query") as role,
        httpx2.AsyncClient(base_url=role.url, headers=bearer(key), timeout=30) as client,
    ):
        before = await asyncio.gather(*(client.get("/api/v1/query") for _ in range(4)))
        await on_spare.close()
        await asyncio.to_thread(spare_postgres.stop)
        try:
            down = await client.get("/api/v1/query")
            refused = await refusal_of_tail(role, key)
        finally:
            spare_postgres.start(servers_folder / "spare.log")
        after = await asyncio.gather(*(client.get("/api/v1/query") for _ in range(4)))

    assert {one.status_code for one in before} == {200}
    assert down.status_code == 503
    assert int(down.headers["retry-after"]) >= 1
    assert down.json()["error"]["code"] == "unavailable"
    assert refused["code"] == "unavailable"
    assert {(one.status_code, len(one.json()["records"])) for one in after} == {(200, 3)}


async def refusal_of_tail(role, key) -> dict:
    async with watching(role, key) as watcher:
        assert await watcher.until_closed() == 1013
    return watcher.problem


@pytest.mark.parametrize("program", [binaries.valkey, binaries.redis], ids=["valkey", "redis7"])
async def test_a_tail_goes_on_after_its_journal_was_restarted(
    program, postgres, servers_folder, roots, binding, tmp_path, monkeypatch
):
    monkeypatch.setattr(watch, "POLL_S", 0.05)
    monkeypatch.setattr(hub, "BACKOFF_S", 0.1)
    found = program()
    if found is None:
        pytest.skip("no redis-server of 7.0 or newer on this machine; .ci/run installs it")
    folder = servers_folder / f"query-{found.kind}"
    server = Valkey(folder, servers.free_port(), "operator", accounts.choose(), found)
    server.start(folder.with_suffix(".log"))
    address = JournalServer(servers.LOOPBACK, server.port)
    client = redis_client.client(address, Login("lw_operator", "operator"))
    await world.provision.bootstrap_journal(client)
    tenant = await world.make_tenant(f"test-{found.kind}", postgres, server, client, roots)
    key = await tenant.api_key(keys.SCOPE_QUERY)
    producer = Producer(tenant)
    try:
        async with (
            serving(app.run, tmp_path, msgspec.structs.replace(binding, journal=address)) as role,
            watching(role, key) as watcher,
        ):
            await watcher.until_live()
            await producer.append(3)
            await producer.seen_by(watcher)
            await asyncio.to_thread(server.stop)
            server.start(folder.with_suffix(".log"))
            for _ in range(20):
                await producer.append(3)
            await producer.seen_by(watcher)
    finally:
        await tenant.close()
        server.stop()

    exactly_once(producer, watcher)


async def test_what_is_known_of_keys_stays_in_force_while_the_control_schema_cannot_be_read(
    tenant, query_key, binding, postgres, monkeypatch, caplog
):
    monkeypatch.setattr(watch, "POLL_S", 0.02)
    clock = [1000.0]
    watched, life = watch.Watch("query", lambda: clock[0]), Life()
    await watched.bind(binding.store, binding.control_login)
    following = asyncio.create_task(watched.follow(life))

    async def is_at(time_s: float) -> bool:
        return watched.directory.as_of_s == time_s

    async def is_noticed() -> bool:
        return "control schema away" in caplog.text

    async def is_said() -> bool:
        return "control schema" in life.problems()

    await until(lambda: is_at(1000.0))
    with unreadable(tenant):
        clock[0] = 1000.0 + access.STALE_AFTER_S
        await until(is_noticed)
        seen = watched.directory
        problems, age_s = life.problems(), age_in_metrics_s()
        clock[0] += 1
        await until(is_said)
        said, late_age_s = life.problems()["control schema"], age_in_metrics_s()
    await until(lambda: is_at(clock[0]))
    back = life.problems()
    life.stopping.set()
    await following
    await watched.close()

    assert (seen.as_of_s, tenant.id in seen.tenants, problems) == (1000.0, True, {})
    assert said.startswith("Which keys are revoked was not heard for too long")
    assert (age_s, late_age_s, back) == (900.0, 901.0, {})


def age_in_metrics_s() -> float:
    return next(
        sample.value
        for one in text_string_to_metric_families(metrics.text().decode())
        for sample in one.samples
        if sample.name == "logweir_revocations_age_seconds" and sample.labels["role"] == "query"
    )


async def test_without_news_for_a_quarter_of_an_hour_no_key_is_trusted(
    tenant, query_key, binding, postgres, monkeypatch
):
    query = app.Query()
    await query.bind(binding)
    await query.watch.refresh()
    headers = [(b"x-api-key", query_key.encode())]
    heard_s = query.watch.directory.as_of_s
    monkeypatch.setattr(app.time, "time", lambda: heard_s + access.STALE_AFTER_S)
    trusted = query.check(headers)
    monkeypatch.setattr(app.time, "time", lambda: heard_s + access.STALE_AFTER_S + 1)
    with pytest.raises(access.StaleNewsError):
        query.check(headers)
    monkeypatch.undo()
    await query.close()

    assert trusted.tenant.id == tenant.id


@contextlib.contextmanager
def unreadable(tenant: world.Tenant):
    """A row of the control schema is of a form that this program does not know."""
    with connect(tenant) as connection:
        change = "update logweir.tenants set spec = %s where id = %s"
        connection.execute(change, ['["of a newer version"]', tenant.id])
        try:
            yield
        finally:
            connection.execute(change, ["{}", tenant.id])


# ---- its own pages, its end ------------------------------------------------------------------


async def test_the_role_is_ready_when_the_control_schema_was_read(binding, tmp_path):
    async with serving(app.run, tmp_path, None, "query") as role, httpx2.AsyncClient() as client:

        async def problems() -> dict:
            return (await client.get(f"{role.ops_url}/readyz")).json()["problems"]

        async def has_both() -> bool:
            with contextlib.suppress(httpx2.TransportError):
                return (await problems()).keys() == {"binding", "control schema"}
            return False

        await until(has_both)
        early = await client.get(f"{role.url}/api/v1/query")
        role.bind(binding)

        async def is_ready() -> bool:
            return not await problems()

        await until(is_ready)
        live = await client.get(f"{role.ops_url}/livez")

    assert early.status_code == 503
    assert early.json()["error"]["code"] == "unavailable"
    assert live.status_code == 200


async def test_queries_and_tails_are_counted(role, tenant, client, query_key):
    async def counted() -> dict[tuple, float]:
        async with httpx2.AsyncClient() as ops:
            text = (await ops.get(f"{role.ops_url}/metrics")).text
        return {
            (one.name, *sorted(one.labels.values())): one.value
            for family in text_string_to_metric_families(text)
            for one in family.samples
        }

    await tenant.store_records(records(3))
    ok = ("logweir_query_requests_total", "200", "histogram")
    bad = ("logweir_query_requests_total", "400", "histogram")
    seconds = ("logweir_query_seconds_count", "histogram")
    scanned = ("logweir_query_scanned_bytes_total",)
    tails = ("logweir_tail_clients",)
    before = await counted()
    await client.get("/api/v1/histogram", params={"query": '{} |= "m"'})
    await client.get("/api/v1/histogram", params={"query": "{"})
    async with watching(role, query_key) as watcher:
        await watcher.until_live()
        during = await counted()

    async def is_gone() -> bool:
        return (await counted())[tails] == before[tails]

    await until(is_gone)
    assert [during[one] - before.get(one, 0) for one in (ok, bad, seconds)] == [1, 1, 2]
    assert during[scanned] > before[scanned]
    assert during[tails] == before[tails] + 1


async def test_the_role_ends_soon_with_open_tails_and_lets_their_connections_go(
    tenant, query_key, serve
):
    async with contextlib.AsyncExitStack() as stack:
        async with serve() as role:
            watchers = [
                await stack.enter_async_context(watching(role, query_key)) for _ in range(3)
            ]
            for watcher in watchers:
                await watcher.until_live()
            began_s = time.monotonic()
            role.life.stopping.set()
            codes = {await watcher.until_closed() for watcher in watchers}
        took_s = time.monotonic() - began_s

    assert codes == {1012}
    assert took_s < 5
    assert await listeners(tenant) == 0


async def test_a_binding_with_other_roots_is_taken(tenant, query_key, serve, binding):
    async with (
        serve() as role,
        httpx2.AsyncClient(base_url=role.url, headers=bearer(query_key)) as client,
    ):
        assert (await client.get("/api/v1/query")).status_code == 200
        role.bind(msgspec.structs.replace(binding, sign_roots={"1": "00" * 32}))

        async def is_refused() -> bool:
            return (await client.get("/api/v1/query")).status_code == 401

        await until(is_refused)


async def test_a_role_without_an_address_says_so(binding, tmp_path):
    with pytest.raises(errors.SetupError):
        await app.run(Settings("query", tmp_path / "x", Listen()), Life())
