"""Whatever a collector is doing when it dies or fails, its blocks are stored once."""

from __future__ import annotations

import asyncio
import time

import draining
import failing
import pytest
from builders import encode, records, request
from draining import Reports, collecting, drained, some, until
from world import Tenant

from logweir.backends import failpoint
from logweir.core import names
from logweir.core.binding import CollectorBinding
from logweir.core.moments import NS_PER_DAY

ALL_THREE = ["a 0", "a 1", "b 0", "b 1", "c 0", "c 1"]


@pytest.fixture(autouse=True)
def disarmed():
    yield
    failpoint.arm("")


async def three(tenant: Tenant) -> None:
    await draining.append(tenant, *(some(tenant, one, 2) for one in "abc"))


async def three_of_last_season(tenant: Tenant) -> None:
    """Blocks of a time for which there is no partition yet."""
    arrival_ns = time.time_ns() - 100 * NS_PER_DAY
    for one in "abc":
        of = [{"message": f"{one} {n}", "level": "info", "service": "shop"} for n in range(2)]
        made = request(of, arrival_ns=arrival_ns)
        await draining.append(tenant, encode(tenant.id, tenant.pipeline, [made]))


async def three_and_a_damaged(tenant: Tenant) -> None:
    await three(tenant)
    await draining.append_raw(tenant, b"no block")


async def three_and_one_that_is_refused(tenant: Tenant) -> None:
    await three(tenant)
    refused = encode(tenant.id, tenant.pipeline, [request(records(1))], refused={"a\0b": 1})
    await draining.append(tenant, refused)


async def three_of_another(tenant: Tenant) -> None:
    """Blocks that another collector took long ago."""
    await three(tenant)
    door = tenant.journal_reader("dead")
    found = await door.read([tenant.pipeline], 10, 1)
    ids = [entry.id for entry in found[tenant.pipeline]]
    await tenant.redis.xclaim(
        draining.stream(tenant), names.CONSUMER_GROUP, "dead", 0, ids, idle=3_600_000
    )


POINTS = {
    "collector.after_read": (three, 0),
    "collector.after_claim": (three_of_another, 0),
    "collector.after_partition": (three_of_last_season, 0),
    "collector.refusal": (three, 0),
    "collector.mid_halves": (three_and_one_that_is_refused, 1),
    "collector.after_quarantine": (three_and_a_damaged, 1),
    "collector.before_commit": (three, 0),
    "collector.cut_on_commit": (three, 0),
    "collector.after_commit": (three, 0),
    "collector.after_ack": (three, 0),
}
"""What must be in the journal so that each is reached, and how many blocks of it are bad."""


async def has_each_once(tenant: Tenant, quarantined: int) -> None:
    assert draining.messages(tenant) == ALL_THREE
    assert len(draining.quarantine(tenant)) == quarantined
    assert draining.usage(tenant)["quarantined"] == quarantined
    assert draining.usage(tenant)["repeated"] == 0
    assert draining.is_balanced(tenant)
    assert await draining.in_flight(tenant) == 0
    assert await draining.pending(tenant) == 0


def test_every_point_of_the_collector_is_tested():
    assert {one for one in failpoint.POINTS if one.startswith("collector.")} == set(POINTS)


@pytest.mark.parametrize("point", POINTS)
async def test_a_collector_that_dies_there_has_lost_and_doubled_nothing(
    make_tenant, tmp_path, point
):
    fill, quarantined = POINTS[point]
    tenant = await make_tenant(retention_days=3000)
    await fill(tenant)
    binding = CollectorBinding((tenant.collector_binding(linger_s=0.2),))

    with failing.role("collector", binding, tmp_path, f"{point}:crash:1") as role:
        died_at = await asyncio.to_thread(role.died_at)
    async with collecting(tenant.collector_binding()):
        await drained(tenant)

    assert died_at == point
    await has_each_once(tenant, quarantined)


@pytest.mark.parametrize("point", POINTS)
async def test_a_collector_that_fails_there_says_so_and_goes_on(make_tenant, eager_claims, point):
    fill, quarantined = POINTS[point]
    tenant = await make_tenant(retention_days=3000)
    await fill(tenant)
    reports = Reports()
    failpoint.arm(f"{point}:error:1")

    async with collecting(tenant.collector_binding(linger_s=0.2), life=reports):
        await until(lambda: reports.heard, "a report")
        failpoint.arm("")
        await drained(tenant)

    assert "failpoint" in reports.heard[0][1]
    await has_each_once(tenant, quarantined)


async def test_a_block_that_a_store_refuses_once_is_in_quarantine_and_counted(tenant):
    failpoint.arm("collector.refusal:error:0.4")
    sent = 0

    async with collecting(tenant.collector_binding(linger_s=0.01)):
        while not draining.quarantine(tenant):
            await draining.append(tenant, some(tenant, f"block {sent}"))
            await drained(tenant)
            sent += 1

    [(_, reason, _)] = draining.quarantine(tenant)
    assert reason == "refused by the store: DataError: failpoint collector.refusal"
    assert draining.usage(tenant)["quarantined"] == 1
    assert draining.usage(tenant)["stored"] == sent - 1
    assert draining.is_balanced(tenant)
    assert await draining.in_flight(tenant) == 0


async def test_a_collector_that_hangs_on_a_commit_doubles_nothing_when_it_wakes(
    tenant, tmp_path, eager_claims
):
    user, patience = tenant.store_login("w").user, "idle_in_transaction_session_timeout"
    draining.rows(tenant, f"alter role {user} set {patience} = '300ms'")
    await three(tenant)
    binding = CollectorBinding((tenant.collector_binding(linger_s=0.2),))

    spec = "collector.before_commit:hang:1"
    with failing.role("collector", binding, tmp_path, spec) as role:
        async with collecting(tenant.collector_binding(), "other"):
            await drained(tenant)

        await has_each_once(tenant, 0)
        assert role.process.poll() is None
