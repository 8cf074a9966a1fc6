"""What a collector does with blocks that cannot be stored: they lose no neighbour and no time."""

from __future__ import annotations

import time

import draining
import pytest
from builders import encode, records, request
from draining import Reports, collecting, drained, some, until
from world import Tenant

from logweir.collector import breaker, worker
from logweir.core import block
from logweir.core.moments import NS_PER_DAY
from logweir.core.names import PipelineId, TenantId


def newer_version(payload: bytes) -> bytes:
    """The block as a program of the next version would mark it; its content stays readable."""
    return payload[:3] + bytes([block.VERSION + 1]) + payload[4:]


def of_next_month(tenant: Tenant) -> bytes:
    """A block from an ingest whose clock is weeks ahead."""
    arrival_ns = time.time_ns() + 40 * NS_PER_DAY
    return encode(tenant.id, tenant.pipeline, [request(records(2), arrival_ns=arrival_ns)])


def refused_by_postgres(tenant: Tenant) -> bytes:
    """A block that decodes, but names a refusal with a NUL, which jsonb cannot hold."""
    return encode(tenant.id, tenant.pipeline, [request(records(2))], refused={"a\0b": 1})


# One damaged block among good ones


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param(lambda _: b"no block", "undecodable", id="undecodable"),
        pytest.param(
            lambda t: encode(TenantId("other"), t.pipeline, [request(records(2))]),
            "foreign block of other/",
            id="another tenant's",
        ),
        pytest.param(
            lambda t: encode(t.id, PipelineId(t.pipeline + 1), [request(records(2))]),
            "foreign block of",
            id="another pipeline's",
        ),
        pytest.param(
            lambda t: encode(t.id, t.pipeline, [request(records(2), records=3)]),
            "undecodable",
            id="a wrong count in the header",
        ),
        pytest.param(refused_by_postgres, "refused by the store: Untrans", id="refused values"),
        pytest.param(of_next_month, "refused by the store: LW002", id="a time in the future"),
    ],
)
async def test_a_damaged_block_is_quarantined_whole_and_its_neighbours_are_stored(
    tenant, bad, reason
):
    payload = bad(tenant)
    await draining.append(tenant, some(tenant, "before"))
    uuid = block.header(payload).uuid if payload.startswith(b"LWB") else None
    await draining.append_raw(tenant, payload, uuid=uuid, accepted=2)
    await draining.append(tenant, some(tenant, "after"))

    async with collecting(tenant.collector_binding()):
        await drained(tenant)

    [(index, why, kept)] = draining.quarantine(tenant)
    assert (index, kept) == (-1, payload)
    assert why.startswith(reason)
    assert draining.messages(tenant) == ["after 0", "before 0"]
    assert draining.usage(tenant)["quarantined"] == 2
    assert draining.is_balanced(tenant)


async def test_the_keys_of_a_refused_block_are_used(tenant):
    """What comes with one of them again, past the journal's markers, is stored nowhere else."""
    late_ns = time.time_ns() + 40 * NS_PER_DAY
    keyed = [
        request(records(2), key="a", arrival_ns=late_ns),
        request(records(3), key="b", arrival_ns=late_ns),
    ]
    await draining.append_raw(
        tenant,
        payload := encode(tenant.id, tenant.pipeline, keyed, refused={"too_large": 4}),
        uuid=block.header(payload).uuid,
        accepted=5,
    )
    async with collecting(tenant.collector_binding()):
        await drained(tenant)
        for one in ("a", "b", "c"):
            again = encode(
                tenant.id, tenant.pipeline, [request(records(2 + (one == "b")), key=one)]
            )
            await draining.append_raw(
                tenant, again, uuid=block.header(again).uuid, accepted=2 + (one == "b")
            )
        await drained(tenant)

    [(index, _, kept)] = draining.quarantine(tenant)
    assert (index, kept) == (-1, payload)
    assert draining.messages(tenant) == ["message 0", "message 1"]
    sums = draining.usage(tenant)
    assert (sums["quarantined"], sums["repeated"], sums["stored"]) == (5, 5, 2)
    assert draining.is_balanced(tenant)
    assert ({"too_large": 4},) in draining.rows(tenant, "select refused from usage")


async def test_a_damaged_block_and_its_ledger_row_are_of_one_transaction(tenant):
    uuid = await draining.append_raw(tenant, b"no block")

    async with collecting(tenant.collector_binding()):
        await drained(tenant)

    of_row = "select xmin::text from {} where block = '{}'"
    of_quarantine = draining.value(tenant, of_row.format("quarantine", uuid.hex()))
    assert draining.value(tenant, of_row.format("ledger", uuid.hex())) == of_quarantine


async def test_a_damaged_block_that_is_delivered_again_is_quarantined_once(tenant):
    await draining.append_raw(tenant, b"no block")
    async with draining.forbidden(tenant, "xack"), draining.dying(tenant.collector_binding()):
        await until(lambda: draining.quarantine(tenant))

    async with collecting(tenant.collector_binding()):
        await drained(tenant)

    assert len(draining.quarantine(tenant)) == 1
    assert draining.is_balanced(tenant)


async def test_one_block_that_the_store_refuses_is_found_among_many(tenant):
    blocks = [some(tenant, f"block {number}") for number in range(40)]
    blocks[23] = refused_by_postgres(tenant)
    await draining.append(tenant, *blocks)

    async with collecting(tenant.collector_binding(linger_s=0.3)):
        await drained(tenant)

    assert [row[2] for row in draining.quarantine(tenant)] == [blocks[23]]
    assert draining.stored_records(tenant) == 39
    assert len(draining.segments(tenant)) < 12
    assert draining.is_balanced(tenant)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"u": b"short", "n": b"1", "b": b"bad"}, id="a short id"),
        pytest.param({"n": b"1", "b": b"bad"}, id="no id"),
        pytest.param({"u": b"0123456789abcdef", "n": b"many", "b": b"bad"}, id="no number"),
        pytest.param({"u": b"0123456789abcdef", "n": b"9" * 30, "b": b"bad"}, id="a huge number"),
        pytest.param({"u": b"0123456789abcdef", "n": b"1"}, id="no block"),
        pytest.param({"what": b"is this"}, id="fields of something else"),
    ],
)
async def test_an_entry_that_no_ingest_made_does_not_stop_the_collector(tenant, fields):
    await tenant.redis.xadd(draining.stream(tenant), fields)
    await draining.append(tenant, some(tenant, "after"))

    async with collecting(tenant.collector_binding()):
        await drained(tenant)

    assert draining.messages(tenant) == ["after 0"]
    assert draining.is_balanced(tenant)


async def test_a_count_that_no_ledger_can_hold_is_no_reason_to_stop(tenant):
    lying = encode(tenant.id, tenant.pipeline, [request(records(2), expired=1 << 31)])
    await draining.append(tenant, lying, some(tenant, "after"))

    async with collecting(tenant.collector_binding()):
        await drained(tenant)

    assert [row[2] for row in draining.quarantine(tenant)] == [lying]
    assert draining.messages(tenant) == ["after 0"]


# Many damaged blocks


async def test_too_many_damaged_blocks_stop_the_pipeline_and_say_so(tenant):
    for _ in range(breaker.IN_A_ROW + 10):
        await draining.append_raw(tenant, b"no block")
    await draining.append(tenant, some(tenant, "after"))
    reports = Reports()
    part = f"breaker {tenant.id}/default"

    async with collecting(tenant.collector_binding(), life=reports):
        await until(lambda: part in reports.problems())
        told = reports.problems()[part]
        await reports.turns(3)

    assert told.startswith("too many damaged blocks, the last: undecodable")
    assert len(draining.quarantine(tenant)) == breaker.IN_A_ROW
    assert await draining.backlog(tenant) == 11
    assert reports.problems() == {"process": "stopping"}


async def test_blocks_that_the_store_refuses_open_the_breaker_as_well(tenant):
    count = breaker.IN_A_ROW + 3
    await draining.append(tenant, *(refused_by_postgres(tenant) for _ in range(count)))
    reports = Reports()

    async with collecting(tenant.collector_binding(linger_s=0.3), life=reports):
        await until(lambda: reports.heard)

    assert reports.heard[0][0] == f"breaker {tenant.id}/default"
    assert len(draining.quarantine(tenant)) == breaker.IN_A_ROW
    assert await draining.backlog(tenant) == 3


async def test_damaged_blocks_of_before_a_restart_stop_the_pipeline_as_well(tenant):
    for _ in range(2 * breaker.IN_A_ROW):
        await draining.append_raw(tenant, b"no block")
    await tenant.journal_reader("c0").read([tenant.pipeline], 100, 0.1)
    reports = Reports()

    async with collecting(tenant.collector_binding(), "c0", reports):
        await until(lambda: reports.heard)
        await reports.turns(3)

    assert len(draining.quarantine(tenant)) == breaker.IN_A_ROW
    assert await draining.pending(tenant) == breaker.IN_A_ROW


async def test_a_stopped_pipeline_does_not_stop_its_neighbour(make_tenant):
    tenant = await make_tenant(pipelines=("default", "audit"))
    audit = tenant.pipelines["audit"].id
    for _ in range(breaker.IN_A_ROW + 1):
        await draining.append_raw(tenant, b"no block")
    reports = Reports()

    async with collecting(tenant.collector_binding(), life=reports):
        await until(lambda: reports.heard)
        await draining.append(tenant, some(tenant, "fine", pipeline="audit"), pipeline=audit)
        await drained(tenant, audit)

    assert draining.messages(tenant) == ["fine 0"]
    assert await draining.backlog(tenant) == 1


async def test_after_the_cool_down_a_damaged_stretch_passes_and_the_rest_is_stored(
    tenant, monkeypatch
):
    monkeypatch.setattr(breaker, "COOL_DOWN_S", 0.05)
    for _ in range(breaker.IN_A_ROW + 4):
        await draining.append_raw(tenant, b"no block")
    await draining.append(tenant, some(tenant, "after"))
    reports = Reports()
    part = f"breaker {tenant.id}/default"

    async with collecting(tenant.collector_binding(), life=reports):
        await drained(tenant)
        await until(lambda: part not in reports.problems())

    assert len(draining.quarantine(tenant)) == breaker.IN_A_ROW + 4
    assert [heard for heard, _ in reports.heard].count(part) == 5
    assert draining.messages(tenant) == ["after 0"]


async def test_a_failing_store_does_not_make_one_damaged_block_count_twice(tenant):
    reports = Reports()
    async with collecting(tenant.collector_binding(), life=reports):
        with draining.no_logins(tenant):
            await draining.append_raw(tenant, b"no block")
            await until(lambda: len(reports.heard) > breaker.IN_A_ROW + 5)
        await drained(tenant)

    assert not [part for part, _ in reports.heard if part.startswith("breaker")]


# Blocks of a newer version


async def test_a_block_of_a_newer_version_stays_pending_and_is_reported(tenant):
    await draining.append(tenant, some(tenant, "before"))
    await draining.append_raw(tenant, newer_version(some(tenant, "newer")))
    await draining.append(tenant, some(tenant, "after"))
    reports = Reports()

    async with collecting(tenant.collector_binding(), life=reports):
        await until(lambda: draining.stored_records(tenant) == 2)
        told = reports.problems()

    assert draining.messages(tenant) == ["after 0", "before 0"]
    assert draining.quarantine(tenant) == []
    assert "version 2" in told[f"versions {tenant.id}/default"]
    assert await draining.pending(tenant) == 1


async def test_a_newer_collector_takes_what_an_older_one_left(tenant, eager_claims, monkeypatch):
    payload = some(tenant, "newer")
    await draining.append_raw(tenant, newer_version(payload), uuid=block.header(payload).uuid)
    async with collecting(tenant.collector_binding(), "older") as older:
        await until(lambda: older.lines[tenant.pipeline].unknown)
    monkeypatch.setattr(block, "VERSION", block.VERSION + 1)

    async with collecting(tenant.collector_binding(), "newer"):
        await drained(tenant)

    assert draining.messages(tenant) == ["newer 0"]


async def test_blocks_of_a_newer_version_are_remembered_up_to_a_bound(tenant, monkeypatch):
    monkeypatch.setattr(worker, "MAX_UNKNOWN", 5)
    for _ in range(100):
        await draining.append_raw(tenant, newer_version(some(tenant, "newer")))
    await draining.append(tenant, some(tenant, "behind"))

    reports = Reports()

    async with collecting(tenant.collector_binding(), life=reports) as running:
        line = running.lines[tenant.pipeline]
        await until(line.is_still)
        await reports.turns(3)

    assert 5 <= len(line.unknown) <= 5 + 16
    assert await draining.pending(tenant) == len(line.unknown)


async def test_unknown_blocks_do_not_hide_what_a_dead_collector_left(
    tenant, eager_claims, monkeypatch
):
    for _ in range(200):
        await draining.append_raw(tenant, newer_version(some(tenant, "newer")))
    await draining.append(tenant, some(tenant, "left"))
    await tenant.journal_reader("dead").read([tenant.pipeline], 300, 0.1)

    async with collecting(tenant.collector_binding()):
        await until(lambda: draining.stored_records(tenant) == 1)

    assert await draining.backlog(tenant) == 200
