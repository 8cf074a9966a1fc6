"""What a search does when time is short, segments are many, or the store moves on."""

from __future__ import annotations

import itertools
import json
import random
import time
import uuid

import draining
import pytest
from builders import record, records
from querying import HOUR_NS, fill, merge_some, random_query, store_rows
from world import Tenant

from logweir.core import access
from logweir.core import segment as segment_of
from logweir.query import engine, params
from logweir.query import plan as planning
from logweir.query.search import search

NEVER = engine.Budget(1e9, 1 << 40)


def pipelines(tenant: Tenant) -> dict:
    return {one.id: access.Pipeline(one.id, name, 30) for name, one in tenant.pipelines.items()}


def plan_of(tenant: Tenant, text: str, **options) -> planning.Plan:
    now_ns = time.time_ns()
    window = params.Window(now_ns - 3 * HOUR_NS, now_ns + 10**9)
    return planning.plan(text, window, pipelines(tenant), now_ns, **options)


def ticking() -> engine.Run:
    """A run in which each look at the clock takes a second, with time for six looks."""
    ticks = itertools.count()
    return engine.Run(engine.Budget(6, 1 << 40), lambda: float(next(ticks)))


async def test_a_stored_record_is_found_by_a_word_of_its_message(tenant):
    await tenant.store_records([*records(50), record("needle in hay", level="WARNING")])
    plan = plan_of(tenant, '{service="shop"} |= "needle"')

    page = await search(tenant.reader(), plan, 100, engine.Run(NEVER))

    assert [one.message for one in page.records] == ["needle in hay"]
    assert dict(page.records[0].labels)["level"] == "warn"


@pytest.mark.parametrize("is_backward", [True, False], ids=["backward", "forward"])
async def test_pages_that_time_ends_lose_nothing_and_get_further(tenant, is_backward):
    now_ns = time.time_ns()
    rows = []
    for age in range(20):
        times = [now_ns - (age * 5 + n) * 60 * 10**9 - n for n in range(10)]
        rows += await store_rows(tenant, [record(f"{age} {n}", timestamp=n) for n in times])
    reader, stopped, found = tenant.reader(), [], []
    plan = plan_of(tenant, "{}", is_backward=is_backward)
    while True:
        page = await search(reader, plan, 1000, ticking())
        found += [str(one.id) for one in page.records]
        stopped.append(page.stopped)
        if page.next is None:
            break
        plan = planning.plan("{}", plan.window, pipelines(tenant), now_ns, bound=page.next)

    assert found == [row.id for row in sorted(rows, reverse=is_backward)]
    assert set(stopped[:-1]) == {"time"}
    assert len(stopped) > 3


async def test_a_query_that_cannot_get_further_in_its_time_says_so(tenant):
    at_ns = time.time_ns()
    for _ in range(20):
        await store_rows(tenant, [record("x", timestamp=at_ns)])
    now_ns = time.time_ns()
    window = params.Window(at_ns, at_ns + 1)
    plan = planning.plan("{}", window, pipelines(tenant), now_ns)

    with pytest.raises(engine.OverBudgetError, match="too long"):
        await search(tenant.reader(), plan, 1000, ticking())


async def test_a_search_of_cut_batches_finds_the_same(tenant, monkeypatch):
    rng = random.Random(2)
    rows = await fill(tenant, rng, time.time_ns(), commits=12)
    queries = [random_query(rng) for _ in range(12)]
    monkeypatch.setattr(engine, "MAX_HEADS_BYTES", 1)
    monkeypatch.setattr(engine, "PIECE_BYTES", 1)
    reader = tenant.reader()

    for query in queries:
        page = await search(reader, plan_of(tenant, query.text()), 5000, engine.Run(NEVER))

        expected = sorted((row for row in rows if query.keeps(row)), reverse=True)
        assert [str(one.id) for one in page.records] == [row.id for row in expected]


async def test_a_snapshot_sees_one_moment_while_segments_are_merged(tenant):
    rng = random.Random(3)
    await fill(tenant, rng, time.time_ns())
    plan = plan_of(tenant, "{}")
    async with tenant.reader().snapshot() as snapshot:
        keys = await snapshot.keys(plan.lows_ns, plan.high_ns)
        for _ in range(3):
            await merge_some(tenant, rng)
        heads = await snapshot.heads(keys)
        again = await snapshot.keys(plan.lows_ns, plan.high_ns)

    assert [head.id for head in heads] == keys.id.tolist()
    assert sorted(again.id.tolist()) == sorted(keys.id.tolist())


async def test_a_run_that_was_given_up_ends_its_search(tenant):
    await tenant.store_records(records(3))
    run = engine.Run(NEVER)
    run.cancel()

    with pytest.raises(engine.CancelledQueryError):
        await search(tenant.reader(), plan_of(tenant, "{}"), 10, run)


async def test_a_page_of_nothing_has_no_next(tenant):
    found = await search(tenant.reader(), plan_of(tenant, "{}"), 10, engine.Run(NEVER))

    assert (found.records, found.next, found.stopped) == ([], None, None)


async def test_pages_that_end_by_their_bytes_are_full_whatever_segments_they_come_from(
    tenant, monkeypatch
):
    monkeypatch.setattr("logweir.query.search.MAX_ANSWER_BYTES", 20_000)
    now_ns = time.time_ns()
    for segment in range(12):
        times_ns = [now_ns - 10**6 * (12 * n + segment) for n in range(4)]
        await store_rows(tenant, [record("x" * 800, timestamp=one) for one in times_ns])

    page = await search(tenant.reader(), plan_of(tenant, "{}"), 48, engine.Run(NEVER))

    assert page.stopped == "bytes"
    assert len(page.records) == 20_000 // (200 + 800)


@pytest.mark.parametrize("kept_bytes", [0, 1 << 24])
@pytest.mark.parametrize("text", ['{} |= "for"', "{}"])
async def test_attributes_that_repeat_ids_of_messages_are_read_with_them(
    tenant, monkeypatch, kept_bytes, text
):
    monkeypatch.setattr("logweir.query.search.MAX_KEPT_BYTES", kept_bytes)
    now_ns, rows = time.time_ns() - 10**9, []
    for segment in range(6):
        made = [
            (now_ns - 1000 * n - segment, uuid.uuid4().hex + uuid.uuid4().hex) for n in range(200)
        ]
        of = [record(f"for {one}", timestamp=at, metadata={"id": one}) for at, one in made]
        await store_rows(tenant, of)
        rows += made
    stored = [one.layout for _, one in draining.segments(tenant)]
    assert all(segment_of.places(one, 2)["attributes"].codec == 6 for one in stored)

    found, bound = [], None
    while True:
        plan = plan_of(tenant, text, **({"bound": bound} if bound else {}))
        page = await search(tenant.reader(), plan, 97, engine.Run(NEVER))
        found += [(one.id.time_ns, one.message, one.attributes) for one in page.records]
        if page.next is None:
            break
        bound = page.next

    assert found == [
        (at, f"for {one}", json.dumps({"id": one}, separators=(",", ":")).encode())
        for at, one in sorted(rows, reverse=True)
    ]
