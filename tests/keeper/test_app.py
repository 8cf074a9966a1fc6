"""The role as it runs: on a server of its own, where its tenants are the only ones."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx2
import keeping
import msgspec
import pytest
import world
from keeping import age, ask, count, stored, write
from serving import Role, serving, until
from world import Tenant

from logweir.backends import provision, redis_client
from logweir.core.binding import JournalServer, Login
from logweir.keeper import app, duties, merges
from logweir.standalone import accounts, servers
from logweir.standalone.postgres import Postgres

PROGRAM = """
import sys
from pathlib import Path
from logweir.backends import failpoint
from logweir.keeper import merges
from logweir.keeper.app import main
from logweir.runtime.settings import Listen, Settings
merges.MAX_MEMBERS = 10
failpoint.arm(sys.argv[2])
main(Settings(role="keeper", binding=Path(sys.argv[1]), ops=Listen(), log_format="json"))
"""


@pytest.fixture(scope="module")
def own_postgres(servers_folder: Path, roots: provision.Roots) -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="keeper-", dir=servers_folder))
    folder.chmod(0o755)
    server = Postgres(folder / "data", servers.free_port(), "super", accounts.choose())
    server.start(folder / "log")
    provision.bootstrap_store(server.url(), roots)
    provision.upgrade_control(world.operator_conninfo(server, roots))
    yield server
    server.stop()


@pytest.fixture
async def new_tenant(own_postgres, valkey, roots) -> AsyncIterator[Callable]:
    """Makes tenants on the server of these tests; they are deleted after the test."""
    made: list[Tenant] = []
    client = redis_client.client(
        JournalServer(servers.LOOPBACK, valkey.port), Login("lw_operator", "operator")
    )
    await provision.bootstrap_journal(client)

    async def make(name: str) -> Tenant:
        found = await world.make_tenant(name, own_postgres, valkey, client, roots)
        made.append(found)
        return found

    yield make
    for tenant in made:
        await set_state(tenant, "deleted")
        await tenant.close()


@pytest.fixture
async def tenant(new_tenant, request) -> Tenant:
    return await new_tenant(f"keep-{abs(hash(request.node.name)) % 10**9}")


@pytest.fixture
def quick(monkeypatch) -> None:
    """Everything happens soon, so that a test need not wait for it."""
    monkeypatch.setattr(app, "POLL_S", 0.05)
    monkeypatch.setattr(app, "IDLE_S", 0.02)
    monkeypatch.setattr(duties, "LOOK_S", 0.1)
    monkeypatch.setattr(duties, "QUIET_S", 0.1)
    monkeypatch.setattr(duties, "BACKOFF_S", (0.1, 0.2))
    monkeypatch.setattr(merges, "MIN_AGE_S", 0.0)


async def set_state(tenant: Tenant, state: str) -> None:
    await ask(
        tenant, "update logweir.tenants set state = %s where id = %s -- {}", [state, tenant.id]
    )


def running(tenant: Tenant, folder: Path) -> contextlib.AbstractAsyncContextManager[Role]:
    return serving(app.run, folder, keeping.keeper_binding(tenant), "keeper")


async def until_count(tenant: Tenant, most: int) -> None:
    async def is_low() -> bool:
        return await count(tenant) <= most

    await until(is_low)


async def test_a_keeper_merges_what_is_there_when_it_starts(tenant, tmp_path):
    await write(tenant, 30)
    await age(tenant)
    before = await stored(tenant)

    async with running(tenant, tmp_path):
        await until_count(tenant, 1)

    assert await stored(tenant) == before


@pytest.mark.usefixtures("quick")
async def test_a_keeper_keeps_up_with_what_is_written_meanwhile(tenant, tmp_path):
    async with running(tenant, tmp_path):
        await write(tenant, 60)
        await until_count(tenant, 20)

    assert sum((await stored(tenant)).values()) == 180


@pytest.mark.usefixtures("quick")
async def test_a_tenant_that_is_made_later_is_served(tenant, new_tenant, tmp_path):
    async with running(tenant, tmp_path):
        late = await new_tenant("keep-late")
        await write(late, 40)

        await until_count(late, 20)


@pytest.mark.usefixtures("quick")
async def test_two_keepers_on_a_busy_tenant_lose_and_double_nothing(tenant, tmp_path):
    await write(tenant, 200, 1)
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()

    async with running(tenant, folders[0]), running(tenant, folders[1]):
        await write(tenant, 100, 1)
        await until_count(tenant, 25)

    found = await stored(tenant)
    assert sum(found.values()) == 300
    assert set(found.values()) == {1}


@pytest.mark.usefixtures("quick")
async def test_a_tenant_that_fails_holds_up_no_other_and_is_told_once(
    tenant, new_tenant, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    broken = await new_tenant("keep-broken")
    # A revision that the login does not have yet: the keeper's password is wrong.
    revision = "update logweir.tenants set keeper_revision = %s where id = %s -- {}"
    await ask(broken, revision, [2, broken.id])
    await write(tenant, 30)

    async with running(tenant, tmp_path) as role:
        await until_count(tenant, 3)
        await until_text(role, "logweir_keeper_failing_tenants 1.0")
        await ask(broken, revision, [1, broken.id])
        await until_text(role, "logweir_keeper_failing_tenants 0.0")

    said = [one for one in caplog.records if getattr(one, "tenant", "") == broken.id]
    assert [one.message for one in said] == ["tenant changed", "tenant changed"]
    assert "password authentication failed" in said[0].problem
    assert said[1].problem == ""


@pytest.mark.usefixtures("quick")
async def test_a_tenant_that_fails_is_not_tried_again_at_once(
    tenant, new_tenant, tmp_path, monkeypatch
):
    monkeypatch.setattr(duties, "BACKOFF_S", (600.0, 600.0))
    broken = await new_tenant("keep-waiting")
    revision = "update logweir.tenants set keeper_revision = 2 where id = %s -- {}"
    await ask(broken, revision, [broken.id])

    async with running(tenant, tmp_path) as role:
        await until_text(role, "logweir_keeper_failing_tenants 1.0")
        await write(tenant, 40)
        await until_count(tenant, 20)

    log = (tenant.postgres.folder.parent / "log").read_text()
    user = broken.store_login("k").user
    assert log.count(f'password authentication failed for user "{user}"') == 1


async def until_text(role: Role, text: str) -> None:
    """Wait until the role's metrics say something."""

    async def is_there() -> bool:
        return text in (await page(role, "metrics")).text

    await until(is_there)


async def page(role: Role, name: str) -> httpx2.Response:
    async with httpx2.AsyncClient() as client:
        return await client.get(f"{role.ops_url}/{name}")


@pytest.mark.usefixtures("quick")
async def test_the_login_of_the_other_slot_is_used_when_it_is_in_use(tenant, tmp_path):
    await ask(
        tenant, "update logweir.tenants set keeper_slot = 'b' where id = %s -- {}", [tenant.id]
    )
    row = next(one for one in await tenant.control.tenants() if one.id == tenant.id)
    conninfo = world.operator_conninfo(tenant.postgres, tenant.roots)
    await asyncio.to_thread(provision.provision_store, conninfo, row, tenant.roots, tenant.limits)
    await ask(tenant, "alter role {} nologin".replace("{}", tenant.store_login("k").user))
    await write(tenant, 20)

    async with running(tenant, tmp_path):
        await until_count(tenant, 2)


@pytest.mark.parametrize("state", ["draining", "retained", "provisioning"])
@pytest.mark.usefixtures("quick")
async def test_a_tenant_that_is_not_there_for_long_or_not_yet_is_left_alone(
    tenant, new_tenant, tmp_path, state
):
    other = await new_tenant(f"keep-{state}")
    await write(other, 20)
    await set_state(other, state)
    await write(tenant, 20)

    async with running(tenant, tmp_path):
        await until_count(tenant, 2)

    assert await count(other) == 20


@pytest.mark.usefixtures("quick")
async def test_no_connection_to_a_tenant_stays_open_when_there_is_nothing_to_do(tenant, tmp_path):
    await write(tenant, 20)

    async def is_alone() -> bool:
        rows = await ask(
            tenant,
            "select usename from pg_stat_activity where application_name = 'logweir keeper' -- {}",
        )
        return [row[0] for row in rows] == ["logweir_keeper"] * 2

    async with running(tenant, tmp_path):
        await until_count(tenant, 2)
        await until(is_alone)


@pytest.mark.usefixtures("quick")
async def test_a_keeper_without_the_control_schema_is_not_ready_and_comes_back(tenant, tmp_path):
    await write(tenant, 20)
    good = keeping.keeper_binding(tenant)
    bad = msgspec.structs.replace(good, control_login=Login("logweir_keeper", "wrong"))

    async with running(tenant, tmp_path) as role:
        role.bind(bad)

        async def is_away() -> bool:
            found = (await page(role, "readyz")).json()
            return "password" in found["problems"].get("control schema", "")

        await until(is_away)
        role.bind(good)

        async def is_ready() -> bool:
            return (await page(role, "readyz")).status_code == 200

        await until(is_ready)
        await until_count(tenant, 2)


@contextlib.asynccontextmanager
async def process(
    tenant: Tenant, folder: Path, failpoints: str = ""
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The role in a process of its own; its groups are small, so that it does many things."""
    binding = folder / "keeper.json"
    binding.write_bytes(msgspec.json.encode(keeping.keeper_binding(tenant)))
    found = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, str(binding), failpoints), stderr=asyncio.subprocess.PIPE
    )
    try:
        yield found
    finally:
        with contextlib.suppress(ProcessLookupError):
            found.kill()
        await found.communicate()


async def test_sigterm_ends_a_keeper_soon_and_lets_its_tenants_go(tenant, tmp_path):
    await write(tenant, 30)
    await age(tenant)
    before = await stored(tenant)
    async with process(tenant, tmp_path) as keeper:
        await until_count(tenant, 29)
        keeper.send_signal(signal.SIGTERM)

        async with asyncio.timeout(5):
            _, errors = await keeper.communicate()

    heir = keeping.keeper_control(tenant)
    assert keeper.returncode == 0
    assert await heir.take_lease(f"keeper/{tenant.id}", "heir", 1.0)
    assert await stored(tenant) == before
    assert all(msgspec.json.decode(line)["role"] == "keeper" for line in errors.splitlines())


async def test_a_killed_keeper_loses_nothing_and_its_lease_stays_until_it_runs_out(
    tenant, tmp_path
):
    await write(tenant, 300, 1)
    await age(tenant)
    before = await stored(tenant)
    async with process(tenant, tmp_path) as keeper:
        await until_count(tenant, 299)
        keeper.kill()
        await keeper.wait()

    heir = keeping.keeper_control(tenant)
    assert await stored(tenant) == before
    assert not await heir.take_lease(f"keeper/{tenant.id}", "heir", 1.0)


@pytest.mark.parametrize("point", keeping.MERGE_POINTS)
async def test_a_keeper_that_dies_there_loses_and_doubles_nothing(tenant, tmp_path, point):
    await write(tenant, 300, 1)
    await age(tenant)
    before = await stored(tenant)

    async with process(tenant, tmp_path, f"{point}:crash:1") as keeper:
        async with asyncio.timeout(20):
            _, errors = await keeper.communicate()

    assert keeper.returncode == -signal.SIGKILL
    assert msgspec.json.decode(errors.splitlines()[-1])["point"] == point
    assert await stored(tenant) == before


@pytest.mark.usefixtures("quick")
async def test_a_keeper_lets_go_what_the_control_schema_says_and_measures_it(tenant, tmp_path):
    now_s = int(time.time())
    await write(tenant, 3, timestamp=now_s - 20 * 86400)
    await write(tenant, 3, timestamp=now_s)
    pipeline = tenant.pipelines["default"]
    await tenant.control.ensure_pipeline(tenant.id, pipeline.name, 5, {})

    async with running(tenant, tmp_path) as role:
        await until_count(tenant, 3)

        async def is_measured() -> bool:
            async with httpx2.AsyncClient() as client:
                text = (await client.get(f"{role.ops_url}/metrics")).text
            [[size]] = await ask(tenant, "select sum(stored_bytes)::int8 from {}.usage")
            return f'logweir_tenant_stored_bytes{{tenant="{tenant.id}"}} {float(size)}' in text

        await until(is_measured)

    oldest = await ask(tenant, "select oldest_ns / 1000000000 from {}.storage")
    assert oldest == [(now_s,)]


@pytest.mark.usefixtures("quick")
async def test_a_change_of_what_is_kept_is_in_force_at_once(tenant, tmp_path, monkeypatch):
    for wait in ("LOOK_S", "QUIET_S", "OVER_S"):
        monkeypatch.setattr(duties, wait, 600.0)
    monkeypatch.setattr(merges, "MIN_AGE_S", 600.0)
    now_s = int(time.time())
    await write(tenant, 3, timestamp=now_s - 2 * 86400)
    await write(tenant, 3, timestamp=now_s)
    name, operator = tenant.pipelines["default"].name, tenant.control
    drops = [None]

    async def is_noted() -> bool:
        [(next_drop_ns,)] = await ask(tenant, "select next_drop_ns from {}.storage")
        is_new = next_drop_ns != drops[-1]
        if is_new:
            drops.append(next_drop_ns)
        return is_new

    async with running(tenant, tmp_path):
        await until(is_noted)
        await operator.ensure_pipeline(tenant.id, name, 3, {})
        await until(is_noted)
        await operator.ensure_pipeline(tenant.id, name, 1, {})
        await until_count(tenant, 3)
        await ask(tenant, "update {}.settings set retention_bytes = 1")
        spec = {**tenant.row.spec, "retention": {"bytes": 1}}
        await operator.set_tenant(tenant.id, "active", tenant.row.retention_days, spec)
        await until_count(tenant, 0)

    assert drops[2:] == [(now_s + 86400) * 10**9 + 1]


@pytest.mark.usefixtures("quick")
async def test_a_tenant_whose_retention_fails_is_told_and_merged_all_the_same(tenant, tmp_path):
    await ask(tenant, "alter table {}.storage rename to gone")

    async with running(tenant, tmp_path) as role:
        await write(tenant, 40)
        await until_count(tenant, 20)
        await until_text(role, "logweir_keeper_failing_tenants 1.0")


@pytest.mark.parametrize("point", keeping.RETENTION_POINTS)
async def test_a_keeper_that_dies_there_leaves_usage_that_adds_up(tenant, tmp_path, point):
    now_s, pipeline = int(time.time()), tenant.pipelines["default"]
    [(month,)] = await ask(tenant, "select name from {}.partition_bounds()")
    await ask(tenant, f"drop table {{}}.{month}")
    await ask(tenant, "update {}.settings set partition_width = 'day'")
    for days in (20, 7, 0):
        await write(tenant, 3, timestamp=now_s - days * 86400)
    await ask(tenant, "update {}.settings set retention_days = 10")
    await tenant.control.set_tenant(tenant.id, "active", 10, {})
    await tenant.control.ensure_pipeline(tenant.id, pipeline.name, 5, {})

    async with process(tenant, tmp_path, f"{point}:crash:1") as keeper:
        async with asyncio.timeout(20):
            _, errors = await keeper.communicate()

    assert keeper.returncode == -signal.SIGKILL
    assert msgspec.json.decode(errors.splitlines()[-1])["point"] == point
    assert await count(tenant) == (3 if point == "keeper.after_expire" else 6)
    assert await ask(
        tenant,
        "select (select sum(length(body) + length(filter)) from {0}.segments)"
        " = (select sum(stored_bytes) from {0}.usage)",
    ) == [(True,)]
