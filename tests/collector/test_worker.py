"""A collector's worker drains a journal into a store, each block once, whatever fails between."""

from __future__ import annotations

import draining
from builders import encode, records, request
from draining import Reports, collecting, drained, dying, some, until
from world import Tenant

from logweir.collector import buffer, worker

# All is well


async def test_a_block_is_stored_with_its_ledger_row_and_its_usage(tenant):
    payload = encode(tenant.id, tenant.pipeline, [request(records(3)), request(records(2))])
    await draining.append(tenant, payload)

    async with collecting(tenant.collector_binding()):
        await drained(tenant)

    assert draining.usage(tenant) == {
        "requests": 2,
        "stored": 5,
        "quarantined": 0,
        "expired": 0,
        "repeated": 0,
    }
    assert draining.is_balanced(tenant)


async def test_what_is_acknowledged_leaves_the_journal_s_counters(tenant):
    await draining.append(tenant, some(tenant, "a", 3), some(tenant, "b", 4))
    before = await draining.in_flight(tenant)

    async with collecting(tenant.collector_binding()):
        await drained(tenant)

    assert before == 7
    assert await draining.in_flight(tenant) == 0


async def test_segment_ledger_and_usage_are_of_one_transaction(tenant):
    await draining.append(tenant, some(tenant, "a"))

    async with collecting(tenant.collector_binding()):
        await drained(tenant)

    tables = ("segments", "ledger", "usage")
    assert len({draining.value(tenant, f"select xmin::text from {t}") for t in tables}) == 1


async def test_blocks_that_arrive_together_share_a_segment(tenant):
    await draining.append(tenant, *(some(tenant, f"block {number}") for number in range(20)))

    async with collecting(tenant.collector_binding(linger_s=0.2)):
        await drained(tenant)

    assert [one.n for _, one in draining.segments(tenant)] == [20]


async def test_the_pipelines_of_a_tenant_are_drained_side_by_side(make_tenant):
    tenant = await make_tenant(pipelines=("default", "audit"))
    audit = tenant.pipelines["audit"].id
    await draining.append(tenant, some(tenant, "a"))
    await draining.append(tenant, some(tenant, "b", pipeline="audit"), pipeline=audit)

    async with collecting(tenant.collector_binding()):
        await drained(tenant)
        await drained(tenant, audit)

    pipelines = [one.pipeline for _, one in draining.segments(tenant)]
    assert sorted(pipelines) == sorted([tenant.pipeline, audit])


async def test_the_refusals_that_a_block_reports_are_counted_once(tenant):
    payload = encode(tenant.id, tenant.pipeline, [request(records(1))], refused={"too_large": 4})
    await draining.append(tenant, payload)
    await draining.append(tenant, payload)

    async with collecting(tenant.collector_binding()):
        await drained(tenant)

    assert draining.rows(tenant, "select refused from usage") == [({"too_large": 4},)]


async def test_the_keeper_is_told_the_arrival_of_the_oldest_block_that_is_pending(tenant):
    await draining.append(tenant, some(tenant, "left behind"), some(tenant, "next"))
    [entry] = (await tenant.journal_reader("gone").read([tenant.pipeline], 1, 0.1))[tenant.pipeline]

    async with collecting(tenant.collector_binding()):
        await until(lambda: draining.stored_records(tenant) == 1)

    told = "select (extract(epoch from oldest_pending_at) * 1000)::int8 from usage"
    assert draining.value(tenant, told) == int(entry.id.partition("-")[0])


async def test_on_stopping_what_is_held_is_stored(tenant):
    await draining.append(tenant, some(tenant, "held"))

    async with collecting(tenant.collector_binding(linger_s=60)) as running:
        await until(lambda: running.lines[tenant.pipeline].buffer.entries)
        assert draining.stored_records(tenant) == 0

    assert draining.messages(tenant) == ["held 0"]
    assert await draining.backlog(tenant) == 0


async def test_while_other_tenants_hold_too_much_nothing_is_taken(tenant):
    held, life = buffer.Held(), Reports()
    held.size_bytes = buffer.MAX_HELD_BYTES
    await draining.append(tenant, some(tenant, "waits"))
    async with collecting(tenant.collector_binding(), life=life, held=held) as running:
        await life.turns(5)
        taken = list(running.lines[tenant.pipeline].buffer.entries)
        stored = draining.stored_records(tenant)
        held.size_bytes = 0
        await drained(tenant)

    assert (taken, stored) == ([], 0)
    assert draining.messages(tenant) == ["waits 0"]
    assert held.size_bytes == 0


# Something fails between the journal and the store


async def test_nothing_is_acknowledged_before_it_is_committed(tenant):
    await draining.append(tenant, some(tenant, "a"))

    async with collecting(tenant.collector_binding()):
        with draining.stalled_commits(tenant):
            await draining.waiting_backends(tenant)
            pending = await draining.pending(tenant)
        await drained(tenant)

    assert pending == 1
    assert draining.messages(tenant) == ["a 0"]


async def test_a_block_that_was_committed_but_not_acknowledged_is_stored_once(tenant):
    await draining.append(tenant, some(tenant, "a"))
    async with draining.forbidden(tenant, "xack"), dying(tenant.collector_binding()):
        await until(lambda: draining.stored_records(tenant) == 1)
    pending = await draining.pending(tenant)

    async with collecting(tenant.collector_binding()):
        await drained(tenant)

    assert pending == 1
    assert draining.messages(tenant) == ["a 0"]
    assert draining.is_balanced(tenant)


async def test_a_failed_acknowledgement_is_made_up_for_without_a_restart(tenant):
    await draining.append(tenant, some(tenant, "a"))
    reports = Reports()

    async with collecting(tenant.collector_binding(), life=reports):
        async with draining.forbidden(tenant, "xack"):
            await until(lambda: reports.heard)
        await drained(tenant)

    assert draining.messages(tenant) == ["a 0"]


async def test_a_restarted_collector_takes_back_its_own_at_once(tenant):
    await draining.append(tenant, *(some(tenant, f"block {number}") for number in range(40)))
    with draining.stalled_commits(tenant):
        async with dying(tenant.collector_binding(linger_s=0.3)):
            await draining.waiting_backends(tenant)
    pending = await draining.pending(tenant)

    async with collecting(tenant.collector_binding()):
        await drained(tenant)

    assert pending == 40
    assert draining.stored_records(tenant) == 40


async def test_what_a_dead_collector_left_is_taken_over(tenant, eager_claims):
    await draining.append(tenant, *(some(tenant, f"block {number}") for number in range(50)))
    await tenant.journal_reader("dead").read([tenant.pipeline], 50, 0.1)

    async with collecting(tenant.collector_binding(), "alive"):
        await drained(tenant)

    assert draining.stored_records(tenant) == 50


async def test_what_a_living_collector_holds_is_left_to_it(tenant, monkeypatch):
    monkeypatch.setattr(worker, "CLAIM_EVERY_S", 0.0)
    await draining.append(tenant, some(tenant, "held by another"), some(tenant, "free"))
    await tenant.journal_reader("busy").read([tenant.pipeline], 1, 0.1)

    async with collecting(tenant.collector_binding(), "idle"):
        await until(lambda: draining.stored_records(tenant) == 1)

    assert draining.messages(tenant) == ["free 0"]
    assert await draining.pending(tenant) == 1


async def test_two_collectors_share_a_stream_and_store_each_block_once(tenant):
    await draining.append(tenant, *(some(tenant, f"block {number}") for number in range(60)))
    binding = tenant.collector_binding(linger_s=0.01)

    async with collecting(binding, "c0"), collecting(binding, "c1"):
        await drained(tenant)

    assert draining.messages(tenant) == sorted(f"block {number} 0" for number in range(60))


async def test_two_collectors_on_one_block_store_it_once(tenant, eager_claims):
    binding = tenant.collector_binding()

    async with collecting(binding, "slow"), collecting(binding, "fast"):
        with draining.stalled_commits(tenant):
            await draining.append(tenant, some(tenant, "a", 5))
            await draining.waiting_backends(tenant, 2)
        await drained(tenant)

    assert draining.stored_records(tenant) == 5
    assert draining.is_balanced(tenant)
    assert await draining.in_flight(tenant) == 0


async def test_an_entry_that_was_deleted_while_pending_is_only_acknowledged(tenant):
    await draining.append(tenant, some(tenant, "a"))
    [entry] = (await tenant.journal_reader("c0").read([tenant.pipeline], 1, 0.1))[tenant.pipeline]
    await tenant.redis.xdel(draining.stream(tenant), entry.id)

    async with collecting(tenant.collector_binding()):
        await until(lambda: _nothing_pending(tenant))

    assert draining.rows(tenant, "select * from ledger") == []


async def _nothing_pending(tenant: Tenant) -> bool:
    return await draining.pending(tenant) == 0


# Memory


async def test_a_backlog_is_held_only_up_to_the_bound_while_the_store_is_away(tenant, monkeypatch):
    monkeypatch.setattr(buffer, "FLUSH_RECORDS", 100)
    reports = Reports()

    async with collecting(tenant.collector_binding(60), life=reports) as running:
        with draining.no_logins(tenant):
            blocks = [some(tenant, f"block {number}", 5) for number in range(400)]
            await draining.append(tenant, *blocks)
            await until(lambda: len(reports.heard) > 30)
            held = running.lines[tenant.pipeline].buffer.records
            pending = await draining.pending(tenant)
        await drained(tenant)

    assert 100 <= held < 105
    assert pending <= 20 + buffer.READ_ENTRIES
    assert draining.stored_records(tenant) == 2000


# Servers that do not answer


async def test_a_store_that_refuses_logins_is_reported_until_it_answers(tenant):
    reports = Reports()
    part = f"tenant {tenant.id}"

    async with collecting(tenant.collector_binding(), life=reports):
        with draining.no_logins(tenant):
            await draining.append(tenant, some(tenant, "a"))
            await until(lambda: part in reports.problems())
            told = reports.problems()[part]
            backlog = await draining.backlog(tenant)
        await drained(tenant)
        await until(lambda: part not in reports.problems())

    assert told.startswith("The store failed:")
    assert backlog == 1
    assert draining.messages(tenant) == ["a 0"]


async def test_while_postgresql_is_down_all_stays_pending_and_then_it_is_drained(
    make_tenant, spare_postgres, servers_folder
):
    tenant = await make_tenant(store=spare_postgres)
    reports = Reports()

    async with collecting(tenant.collector_binding(), life=reports):
        await draining.append(tenant, some(tenant, "before"))
        await drained(tenant)
        spare_postgres.stop()
        await draining.append(tenant, some(tenant, "while it was down"))
        await until(lambda: len(reports.heard) > 5)
        backlog = await draining.backlog(tenant)
        spare_postgres.start(servers_folder / "spare.log")
        await drained(tenant)

    assert backlog == 1
    assert draining.messages(tenant) == ["before 0", "while it was down 0"]
    assert draining.is_balanced(tenant)


async def test_a_killed_postgresql_loses_and_doubles_nothing(
    make_tenant, spare_postgres, servers_folder
):
    tenant = await make_tenant(store=spare_postgres)

    async with collecting(tenant.collector_binding(linger_s=0.0)):
        for number in range(100):
            await draining.append(tenant, some(tenant, f"block {number:03}"))
            if number == 50:
                spare_postgres.stop(wait_s=0)
                spare_postgres.start(servers_folder / "spare.log")
        await drained(tenant)

    assert draining.messages(tenant) == [f"block {number:03} 0" for number in range(100)]
    assert draining.is_balanced(tenant)


async def test_a_journal_that_refuses_reads_is_reported_until_it_answers(tenant):
    await draining.append(tenant, some(tenant, "a"))
    reports = Reports()
    part = f"tenant {tenant.id}"

    async with collecting(tenant.collector_binding(), life=reports):
        async with draining.forbidden(tenant, "xreadgroup"):
            await until(lambda: part in reports.problems())
            told = reports.problems()[part]
        await drained(tenant)
        await until(lambda: part not in reports.problems())

    assert "hand out blocks" in told


def test_the_pause_after_failures_is_bounded_however_long_they_last():
    pauses = [worker.backoff_s(failures) for failures in range(1, 3000)]

    assert max(pauses) <= worker.BACKOFF_S[1]
