"""The collector role: whom its binding names is collected, and its end loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import draining
import httpx2
import msgspec
import pytest
from builders import record
from draining import Reports, drained, some, until
from serving import serving
from world import Tenant

from logweir.collector import app, breaker
from logweir.core.binding import CollectorBinding
from logweir.runtime import bindings


@contextlib.asynccontextmanager
async def collector(*tenants: Tenant) -> AsyncIterator[tuple[app.Collector, Reports]]:
    """A collector of these tenants, in this process."""
    reports = Reports()
    running = app.Collector("c0", reports)
    await running.bind(binding(*tenants))
    try:
        yield running, reports
    finally:
        reports.stopping.set()
        await running.drain()


def binding(*tenants: Tenant, linger_s: float = 0.05) -> CollectorBinding:
    return CollectorBinding(tuple(one.collector_binding(linger_s) for one in tenants))


# The binding


async def test_all_tenants_of_a_binding_are_collected(make_tenant):
    tenants = [await make_tenant() for _ in range(3)]
    for tenant in tenants:
        await draining.append(tenant, some(tenant, tenant.id))

    async with collector(*tenants):
        for tenant in tenants:
            await drained(tenant)

    assert [draining.messages(one) for one in tenants] == [[f"{one.id} 0"] for one in tenants]


async def test_a_tenant_that_joins_the_binding_is_collected(make_tenant):
    first, second = await make_tenant(), await make_tenant()

    async with collector(first) as (running, _):
        await running.bind(binding(first, second))
        await draining.append(second, some(second, "a"))
        await drained(second)

    assert draining.stored_records(second) == 1


async def test_a_pipeline_that_joins_the_binding_is_collected(make_tenant):
    tenant = await make_tenant(pipelines=("default", "audit"))
    whole = tenant.collector_binding()
    one = msgspec.structs.replace(whole, pipelines=whole.pipelines[:1])
    new = whole.pipelines[1]

    async with collector() as (running, _):
        await running.bind(CollectorBinding((one,)))
        await draining.append(tenant, some(tenant, "a", pipeline=new.name), pipeline=new.id)
        await running.bind(CollectorBinding((whole,)))
        await drained(tenant, new.id)

    assert draining.messages(tenant) == ["a 0"]


async def test_what_a_worker_holds_is_stored_before_its_tenant_leaves(tenant):
    async with collector() as (running, _):
        await running.bind(binding(tenant, linger_s=60))
        await draining.append(tenant, some(tenant, "held"))
        await until(lambda: _is_pending(tenant))
        await running.bind(CollectorBinding())
        stored = draining.messages(tenant)

    assert stored == ["held 0"]


async def test_a_tenant_that_left_is_collected_no_more_and_reported_no_more(tenant, monkeypatch):
    for _ in range(breaker.IN_A_ROW):
        await draining.append_raw(tenant, b"no block")
    async with collector(tenant) as (running, reports):
        await until(reports.problems)
        await running.bind(CollectorBinding())
        await draining.append(tenant, some(tenant, "late"))
        problems = reports.problems()

    assert problems == {}
    assert await draining.backlog(tenant) == 1


async def test_a_tenant_that_left_while_its_store_was_away_is_reported_no_more(tenant):
    async with collector(tenant) as (running, reports):
        with draining.no_logins(tenant):
            await draining.append(tenant, some(tenant, "a"))
            await until(reports.problems)
            await running.bind(CollectorBinding())
            problems = reports.problems()

    assert problems == {}


async def test_the_same_binding_again_leaves_the_workers_alone(tenant):
    async with collector() as (running, reports):
        await running.bind(binding(tenant, linger_s=60))
        await draining.append(tenant, some(tenant, "held"))
        await until(lambda: _is_pending(tenant))
        await running.bind(binding(tenant, linger_s=60))
        await reports.turns(2)
        stored = draining.stored_records(tenant)

    assert stored == 0


async def test_no_worker_begins_when_the_process_is_stopping(tenant):
    async with collector() as (running, reports):
        reports.stopping.set()
        await running.bind(binding(tenant))
        await draining.append(tenant, some(tenant, "late"))

    assert await draining.pending(tenant) == 0


async def test_an_error_that_nobody_foresaw_is_reported_and_overcome(tenant, monkeypatch):
    monkeypatch.setattr(app, "RESTART_S", 0.05)
    # No decoder lets such a binding through; the worker cannot even begin.
    broken = msgspec.structs.replace(tenant.collector_binding(), pipelines=None)
    async with collector() as (running, reports):
        await running.bind(CollectorBinding((broken,)))
        await until(reports.problems)
        told = reports.problems()[f"tenant {tenant.id}"]
        await running.bind(binding(tenant))
        await draining.append(tenant, some(tenant, "a"))
        await drained(tenant)

    assert told.startswith("failed: TypeError")


async def _is_pending(tenant: Tenant) -> bool:
    return await draining.pending(tenant) == 1


# The process


@pytest.fixture
def binding_file(tenant: Tenant, tmp_path: Path) -> Path:
    file = tmp_path / "binding.json"
    file.write_bytes(msgspec.json.encode(binding(tenant, linger_s=60)))
    return file


@contextlib.contextmanager
def process(binding_file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The role as a process of its own; killed at the end if it still runs."""
    program = (
        "import pathlib, sys\n"
        "from logweir.collector import app\n"
        "from logweir.runtime.settings import Listen, Settings\n"
        "app.main(Settings('collector', pathlib.Path(sys.argv[1]), Listen(), consumer='c0'))\n"
    )
    started = subprocess.Popen([sys.executable, "-c", program, str(binding_file)])
    try:
        yield started
    finally:
        started.kill()
        started.wait()


async def test_sigterm_stores_what_is_held(tenant, binding_file):
    await draining.append(tenant, some(tenant, "held"))

    with process(binding_file) as started:
        await until(lambda: _is_pending(tenant))
        held = draining.stored_records(tenant)
        started.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(started.wait, 20)

    assert (held, code) == (0, 0)
    assert draining.messages(tenant) == ["held 0"]
    assert await draining.backlog(tenant) == 0


async def test_a_collector_killed_in_the_middle_of_a_commit_loses_and_doubles_nothing(
    tenant, binding_file
):
    of = [record(f"message {number}") for number in range(16_000)]
    await draining.append(tenant, draining.block_of(tenant, of))

    with draining.stalled_commits(tenant), process(binding_file) as started:
        await draining.waiting_backends(tenant)
        started.send_signal(signal.SIGKILL)
        started.wait()
    async with collector(tenant):
        await drained(tenant)

    assert draining.stored_records(tenant) == 16_000
    assert draining.is_balanced(tenant)


async def test_a_collector_killed_between_commit_and_acknowledgement_doubles_nothing(
    tenant, binding_file
):
    of = [record(f"message {number}") for number in range(16_000)]
    await draining.append(tenant, draining.block_of(tenant, of))

    async with draining.forbidden(tenant, "xack"):
        with process(binding_file) as started:
            await until(lambda: draining.stored_records(tenant) == 16_000)
            started.send_signal(signal.SIGKILL)
            started.wait()
    async with collector(tenant):
        await drained(tenant)

    assert draining.stored_records(tenant) == 16_000
    assert draining.is_balanced(tenant)


async def test_a_collector_that_slept_through_its_takeover_doubles_nothing(
    tenant, binding_file, eager_claims
):
    user, patience = tenant.store_login("w").user, "idle_in_transaction_session_timeout"
    draining.rows(tenant, f"alter role {user} set {patience} = '300ms'")
    of = [record(f"message {number}") for number in range(16_000)]
    await draining.append(tenant, draining.block_of(tenant, of))

    with process(binding_file) as sleeper:
        with draining.stalled_commits(tenant):
            await draining.waiting_backends(tenant)
            sleeper.send_signal(signal.SIGSTOP)
        async with draining.collecting(tenant.collector_binding(), "other"):
            await drained(tenant)
        sleeper.send_signal(signal.SIGCONT)
        await until(lambda: draining.is_balanced(tenant))
        sleeper.send_signal(signal.SIGTERM)
        await asyncio.to_thread(sleeper.wait, 20)

    assert draining.stored_records(tenant) == 16_000
    assert await draining.in_flight(tenant) == 0


async def test_a_changed_binding_file_is_followed(make_tenant, tmp_path, monkeypatch):
    monkeypatch.setattr(bindings, "POLL_S", 0.05)
    first, second = await make_tenant(), await make_tenant()

    async with serving(app.run, tmp_path, binding(first), "collector", "c0") as role:
        role.bind(binding(first, second))
        await draining.append(second, some(second, "a"))
        await drained(second)

    assert draining.stored_records(second) == 1


async def test_the_process_says_which_tenant_cannot_be_collected(tenant, tmp_path):
    async with (
        serving(app.run, tmp_path, binding(tenant), "collector", "c0") as role,
        httpx2.AsyncClient() as client,
    ):
        with draining.no_logins(tenant):
            await draining.append(tenant, some(tenant, "a"))
            await until(lambda: _status(client, role.ops_url, 503))
            answer = (await client.get(f"{role.ops_url}/readyz")).json()
        await until(lambda: _status(client, role.ops_url, 200))

    assert list(answer["problems"]) == [f"tenant {tenant.id}"]


async def _status(client: httpx2.AsyncClient, url: str, status: int) -> bool:
    return (await client.get(f"{url}/readyz")).status_code == status
