"""What a keeper's visit does to a store that is written, read and kept by others meanwhile."""

from __future__ import annotations

import asyncio
import time
import uuid
from datetime import UTC, datetime, timedelta

import keeping
import pytest
from builders import records
from keeping import ask, count, stored, visit, write
from world import Tenant

from logweir.backends import failpoint
from logweir.core import access, errors
from logweir.keeper import merges
from logweir.keeper import visit as visits
from logweir.keeper.visit import Lease, LeaseHeldError, Left
from logweir.query import cursor, engine, params
from logweir.query import plan as planning
from logweir.query.search import search
from logweir.runtime.life import Life


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch) -> None:
    """What was written may be merged at once."""
    monkeypatch.setattr(merges, "MIN_AGE_S", 0.0)


async def merge_all(tenant: Tenant, **options) -> None:
    """Merge until there is nothing left to merge, as if hours went by."""
    while True:
        before = await count(tenant)
        await visit(tenant, **options).run("sweep", [])
        if await count(tenant) == before:
            return


class Asking:
    """Queries of a tenant as the query role makes them."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.reader = tenant.reader()
        self.pipelines = {
            one.id: access.Pipeline(one.id, name, 30) for name, one in tenant.pipelines.items()
        }
        now_ns = time.time_ns()
        self.window = params.Window(now_ns - 3600 * 10**9, now_ns + 600 * 10**9)

    async def page(self, text: str, limit: int = 10_000, **options):
        plan = planning.plan(text, self.window, self.pipelines, time.time_ns(), **options)
        run = engine.Run(engine.Budget(10, 1 << 30))
        return await search(self.reader, plan, limit, run), run

    async def ids(self, text: str = '{service="shop"}') -> list[tuple[int, int, int]]:
        page, _ = await self.page(text)
        return [(one.id.time_ns, one.id.block, one.id.index) for one in page.records]


# ---- merging -----------------------------------------------------------------------------------


async def test_tiny_segments_become_one_and_no_record_changes(tenant):
    await write(tenant, 40, metadata={"order": 7}, host="web-1")
    before = await stored(tenant)

    await merge_all(tenant)

    assert await count(tenant) == 1
    assert await stored(tenant) == before
    assert set(before.values()) == {1}


async def test_fresh_segments_are_left_alone(tenant, monkeypatch):
    monkeypatch.setattr(merges, "MIN_AGE_S", 60.0)
    await write(tenant, 20)

    is_finished = await visit(tenant).run("sweep", [])

    assert is_finished
    assert await count(tenant) == 20


async def test_pipelines_are_merged_apart(make_tenant):
    tenant = await make_tenant(pipelines=("default", "audit"))
    await write(tenant, 20)
    await write(tenant, 20, pipeline="audit")
    before = await stored(tenant)

    await merge_all(tenant)

    assert await count(tenant) == 2
    assert await stored(tenant) == before


async def test_a_look_leaves_old_times_to_the_sweep(tenant):
    old_s = int(time.time()) - 5 * 86400
    await write(tenant, 20, timestamp=old_s)

    await visit(tenant).run("look", [])
    after_look = await count(tenant)
    await visit(tenant).run("sweep", [])

    assert after_look == 20
    assert await count(tenant) < 20


async def test_all_pages_of_a_long_list_are_merged(tenant, monkeypatch):
    monkeypatch.setattr(visits, "MAX_LISTED", 12)
    monkeypatch.setattr("logweir.backends.keeper_store.MAX_LISTED", 12)
    await write(tenant, 36)

    await visit(tenant).run("sweep", [])

    assert await count(tenant) == 3


async def test_a_needle_is_found_through_the_filter_of_a_merged_segment(tenant):
    for number in range(3):
        await write(tenant, 6, message=f"order ord-{number}4711 done")
    await merge_all(tenant)
    asking = Asking(tenant)

    found, hit_run = await asking.page('{service="shop"} |= " ord-14711 "')
    missed, miss_run = await asking.page('{service="shop"} |= " ord-94711 "')

    assert (len(found.records), hit_run.stats.opened) == (18, 1)
    assert (len(missed.records), miss_run.stats.opened) == (0, 0)


async def test_readers_see_the_same_records_before_during_and_after(tenant):
    await write(tenant, 120)
    asking = Asking(tenant)
    before = await asking.ids()
    merged = asyncio.Event()
    answers = 0

    async def read() -> None:
        nonlocal answers
        while not merged.is_set():
            assert await asking.ids() == before
            answers += 1

    readers = [asyncio.create_task(read()) for _ in range(3)]
    await merge_all(tenant)
    merged.set()
    await asyncio.gather(*readers)

    assert await count(tenant) < 12
    assert await asking.ids() == before
    assert len(before) == 360
    assert answers >= 3


async def test_a_snapshot_that_began_before_a_merge_reads_on_after_it(tenant):
    await write(tenant, 20)
    async with tenant.reader().snapshot() as snapshot:
        keys = await snapshot.keys({tenant.pipeline: 0}, 2**62)
        await merge_all(tenant)

        heads = await snapshot.heads(keys)
        new = await Asking(tenant).ids()

    assert sum(head.n for head in heads) == 60
    assert len(new) == 60


@pytest.mark.parametrize("direction", ["backward", "forward"])
async def test_pages_go_on_across_merges(tenant, direction):
    await write(tenant, 40)
    asking = Asking(tenant)
    text = '{service="shop"}'
    whole, _ = await asking.page(text, is_backward=direction == "backward")
    found, bound, pages = [], None, 0
    while True:
        page, _ = await asking.page(text, 17, is_backward=direction == "backward", bound=bound)
        found += [one.id for one in page.records]
        pages += 1
        if page.next is None:
            break
        place = cursor.Cursor(page.next, asking.window)
        bound = cursor.decode(cursor.encode(place, tenant.id, text), tenant.id, text).bound
        await visit(tenant).run("sweep", [])

    assert found == [one.id for one in whole.records]
    assert pages > 5
    assert await count(tenant) < 40


async def test_merging_goes_on_while_collectors_store_and_partitions_are_made(make_tenant):
    tenant = await make_tenant(retention_days=60)
    await ask(tenant, "update {}.settings set partition_width = 'day'")
    month = datetime.now(UTC).replace(day=1, hour=1)
    done = asyncio.Event()
    door = keeping.keeper_store(tenant)

    async def keep() -> None:
        while not done.is_set():
            await visit(tenant).run("sweep", [])
            await door.ensure_partitions()

    async def collect(day: int) -> None:
        await write(tenant, 15, timestamp=int(month.timestamp()) - day * 86400)

    keeper = asyncio.create_task(keep())
    for day in range(1, 9):
        await asyncio.gather(collect(day), collect(day + 1))
    done.set()
    await keeper
    written = await stored(tenant)

    await merge_all(tenant)

    assert await stored(tenant) == written
    assert sum(written.values()) == 2 * 8 * 15 * 3
    assert set(written.values()) == {1}
    assert await partitions_with_segments(tenant) == 9
    assert await count(tenant) < 60


async def partitions_with_segments(tenant: Tenant) -> int:
    return (await ask(tenant, "select count(distinct tableoid) from {}.segments"))[0][0]


async def test_two_keepers_at_once_lose_and_double_nothing(tenant, monkeypatch):
    """Without leases: what keeps records safe is the transaction."""

    async def held(self) -> None:
        return

    monkeypatch.setattr(Lease, "hold", held)
    await write(tenant, 300, 1)
    before = await stored(tenant)

    await asyncio.gather(*(merge_all(tenant, holder=f"keeper-{n}") for n in range(3)))

    assert await stored(tenant) == before
    assert await count(tenant) < 20
    assert sum(before.values()) == 300


@pytest.mark.parametrize("point", keeping.MERGE_POINTS)
async def test_a_visit_that_fails_there_loses_and_doubles_nothing(tenant, monkeypatch, point):
    monkeypatch.setattr(merges, "MAX_MEMBERS", 10)
    await write(tenant, 30)
    before = await stored(tenant)
    failpoint.arm(f"{point}:error:1")
    try:
        with pytest.raises(errors.UnavailableError, match=point):
            await visit(tenant).run("sweep", [])
    finally:
        failpoint.arm("")
    after = await stored(tenant)

    await merge_all(tenant)

    assert after == before
    assert await stored(tenant) == before
    assert await count(tenant) < 30


async def test_a_visit_that_takes_long_ends_and_says_that_it_is_not_finished(tenant, monkeypatch):
    monkeypatch.setattr(visits, "VISIT_S", 0.0)
    await write(tenant, 20)

    is_finished = await visit(tenant).run("sweep", [])

    assert not is_finished
    assert await count(tenant) == 20


@pytest.mark.parametrize("work", ["sweep", "upkeep"])
async def test_a_visit_ends_when_the_process_stops(tenant, work):
    await write(tenant, 20)
    life = Life()
    life.stopping.set()

    is_finished = await visit(tenant, life=life).run(work, [])

    assert not is_finished
    assert await count(tenant) == 20


# ---- what is left alone ------------------------------------------------------------------------


async def damage(tenant: Tenant, place: int) -> int:
    """Damage the body of the segment at a place in time; return its id."""
    one = (await keeping.smalls(tenant))[place]
    await ask(
        tenant,
        "update {}.segments set body = set_byte(body, 3, get_byte(body, 3) # 255) where id = %s",
        [one.id],
    )
    return one.id


async def test_a_damaged_segment_is_reported_once_and_left_while_the_others_are_merged(
    tenant, caplog
):
    await write(tenant, 25)
    bad = await damage(tenant, 7)
    left = Left()

    await merge_all(tenant, left=left)
    await merge_all(tenant, left=left)

    rows = await ask(tenant, "select id, n from {}.segments order by n")
    assert rows[0] == (bad, 3)
    assert [row[1] for row in rows] == [3, 72]
    said = [one for one in caplog.records if one.message == "segment damaged"]
    assert [(one.tenant, one.segment) for one in said] == [(tenant.id, bad)]
    assert "checksum" in said[0].reason


async def test_after_damage_the_next_visit_comes_at_once(tenant):
    await write(tenant, 25)
    await damage(tenant, 7)
    left = Left()

    first = await visit(tenant, left=left).run("sweep", [])
    second = await visit(tenant, left=left).run("sweep", [])

    assert (first, second) == (False, True)


async def test_damage_that_is_not_remembered_makes_nobody_spin(tenant, monkeypatch):
    monkeypatch.setattr(visits, "MAX_LEFT", 0)
    await write(tenant, 25)
    await damage(tenant, 7)

    is_finished = await visit(tenant).run("sweep", [])

    assert is_finished


async def test_segments_of_a_newer_program_are_left_alone_and_reported_once(tenant, caplog):
    await write(tenant, 25)
    await ask(tenant, "update {}.segments set codec = 99 where id %% 2 = 0")
    before = (await ask(tenant, "select count(*) from {}.segments where codec = 99"))[0][0]
    left = Left()

    await merge_all(tenant, left=left)
    for _ in range(2):
        await visit(tenant, left=left).run("upkeep", [tenant.pipeline])

    after = (await ask(tenant, "select count(*) from {}.segments where codec = 99"))[0][0]
    said = [one for one in caplog.records if "newer program" in one.message]
    assert after == before
    assert await count(tenant) == before + 1
    assert [one.segments for one in said] == [before]


# ---- leases ------------------------------------------------------------------------------------


async def test_a_tenant_that_another_keeper_serves_is_left_to_it(tenant):
    await write(tenant, 20)
    await Lease(keeping.keeper_control(tenant), tenant.id, "other").hold()

    with pytest.raises(LeaseHeldError):
        await visit(tenant).run("sweep", [])

    assert await count(tenant) == 20


async def test_a_lease_that_was_released_is_free_at_once(tenant):
    lease = Lease(keeping.keeper_control(tenant), tenant.id, "other")
    await lease.hold()
    assert lease.is_ours
    await lease.release()

    assert await visit(tenant).run("sweep", [])


async def test_the_lease_of_a_killed_keeper_runs_out(tenant, monkeypatch):
    monkeypatch.setattr(visits, "HOLD_S", 0.3)
    await Lease(keeping.keeper_control(tenant), tenant.id, "killed").hold()
    heir = Lease(keeping.keeper_control(tenant), tenant.id, "heir")
    refusals = 0
    async with asyncio.timeout(5):
        while True:
            try:
                await heir.hold()
                break
            except LeaseHeldError:
                refusals += 1
                await asyncio.sleep(0.02)

    assert refusals > 0
    assert heir.is_ours


async def test_a_lease_is_renewed_while_work_goes_on(tenant, monkeypatch):
    monkeypatch.setattr(visits, "RENEW_S", 0.0)
    await write(tenant, 30)
    monkeypatch.setattr(merges, "MAX_MEMBERS", 10)
    working = visit(tenant)
    until = "select until from logweir.leases where name = %s -- {}"
    times = []
    combine = merges.combine

    def watched(segments):
        times.append(time.monotonic())
        return combine(segments)

    monkeypatch.setattr(merges, "combine", watched)
    await working.run("sweep", [])
    (row,) = await ask(tenant, until, [f"keeper/{tenant.id}"])
    first_s = row[0].timestamp() - visits.HOLD_S

    assert len(times) == 3
    assert first_s >= time.time() - (time.monotonic() - times[0])


async def test_a_visit_ends_when_its_lease_is_lost(tenant, monkeypatch):
    monkeypatch.setattr(visits, "RENEW_S", 0.0)
    monkeypatch.setattr(merges, "MAX_MEMBERS", 10)
    await write(tenant, 30)
    control = keeping.keeper_control(tenant)
    combine = merges.combine

    def robbed(segments):
        stolen = "update logweir.leases set holder = 'thief' where name = %s -- {}"
        asyncio.run_coroutine_threadsafe(
            ask(tenant, stolen, [f"keeper/{tenant.id}"]), loop
        ).result()
        return combine(segments)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(merges, "combine", robbed)

    with pytest.raises(LeaseHeldError):
        await visit(tenant).run("sweep", [])

    assert await count(tenant) == 21
    assert not await control.take_lease(f"keeper/{tenant.id}", "keeper-1", 1.0)


# ---- upkeep ------------------------------------------------------------------------------------


async def test_an_upkeep_prunes_to_the_second_what_no_pending_block_can_need(tenant):
    await write(tenant, 1)
    horizon = (await ask(tenant, "select oldest_pending_at, at from {}.usage"))[0]
    kept_from = (horizon[0] or horizon[1]) - timedelta(hours=72)
    second = timedelta(seconds=1)
    for at in (kept_from - second, kept_from, kept_from + second):
        await ask(
            tenant,
            "insert into {}.ledger (key, pipeline, kind, at) values (%s, %s, 'r', %s)",
            [uuid.uuid4(), tenant.pipeline, at],
        )

    await visit(tenant).run("upkeep", [tenant.pipeline])

    left = await ask(tenant, "select at from {}.ledger where kind = 'r' order by at")
    assert left == [(kept_from,), (kept_from + second,)]


async def test_an_upkeep_keeps_what_a_pending_block_of_long_ago_needs(tenant):
    await ask(
        tenant,
        "insert into {}.usage (pipeline, oldest_pending_at) values (%s, now() - interval '5 days')",
        [tenant.pipeline],
    )
    for days in (7, 9):
        await ask(
            tenant,
            "insert into {}.ledger (key, pipeline, kind, at)"
            " values (gen_random_uuid(), %s, 'r', now() - make_interval(days => %s))",
            [tenant.pipeline, days],
        )

    await visit(tenant).run("upkeep", [tenant.pipeline])

    left = await ask(tenant, "select extract(day from now() - at)::int from {}.ledger")
    assert left == [(7,)]


async def test_an_upkeep_prunes_nothing_of_a_pipeline_without_usage_and_all_of_a_deleted(tenant):
    for pipeline in (tenant.pipeline, 999):
        await ask(
            tenant,
            "insert into {}.ledger (key, pipeline, kind, at)"
            " values (gen_random_uuid(), %s, 'r', now() - interval '73 hours')",
            [pipeline],
        )

    await visit(tenant).run("upkeep", [tenant.pipeline])

    left = await ask(tenant, "select pipeline from {}.ledger")
    assert left == [(tenant.pipeline,)]


async def test_an_upkeep_forgets_producers_after_90_idle_days(tenant):
    for hours in (90 * 24 - 1, 90 * 24 + 1):
        await ask(
            tenant,
            "insert into {}.producers (pipeline, producer, epoch, last_at)"
            " values (%s, gen_random_uuid(), 1, now() - make_interval(hours => %s))",
            [tenant.pipeline, hours],
        )

    await visit(tenant).run("upkeep", [tenant.pipeline])

    left = await ask(tenant, "select now() - last_at < interval '90 days' from {}.producers")
    assert left == [(True,)]


async def test_an_upkeep_sums_usage_and_the_accounting_still_adds_up(tenant):
    await write(tenant, 6)
    await ask(tenant, "update {}.usage set at = at - interval '5 hours'")
    await write(tenant, 2)
    total = "select sum(stored), sum(requests), sum(stored_bytes) from {}.usage"
    before = await ask(tenant, total)

    await visit(tenant).run("upkeep", [tenant.pipeline])

    assert await ask(tenant, total) == before
    assert len(await ask(tenant, "select 1 from {}.usage")) <= 4


async def test_a_repeat_after_pruning_its_neighbours_is_still_a_repeat(tenant):
    """The ledger of what is younger than the horizon does its work as before."""
    (block,) = await tenant.store_records(records(3))
    await visit(tenant).run("upkeep", [tenant.pipeline])

    rows = await ask(tenant, "select key from {}.ledger where kind = 'b'")

    assert rows == [(uuid.UUID(bytes=block),)]
