"""Pages of a search: every record exactly once, in order, whatever is merged meanwhile."""

from __future__ import annotations

import random
import time

import pytest
from builders import record
from querying import HOUR_NS, fill, merge_some, pages, random_query, store_blocks, store_rows

from logweir.core import keys

SEEDS = [1, 2, 3]


@pytest.fixture
async def tenant(make_tenant):
    return await make_tenant(pipelines=["default", "other"])


@pytest.mark.parametrize("seed", SEEDS)
async def test_all_pages_of_any_query_are_what_a_plain_filter_and_sort_gives(client, tenant, seed):
    rng = random.Random(seed)
    now_ns = time.time_ns()
    rows = await fill(tenant, rng, now_ns)
    times_ns = [row.time_ns for row in rows]

    for _ in range(40):
        query = random_query(rng)
        direction = rng.choice(["backward", "forward"])
        start_ns, end_ns = sorted(
            [rng.choice(times_ns) + rng.choice([0, 1]), rng.choice([rng.choice(times_ns), now_ns])]
        )
        if start_ns == end_ns:
            continue
        expected = [r for r in rows if start_ns <= r.time_ns < end_ns and query.keeps(r)]
        found = [
            one
            async for page in pages(
                client,
                [1, 3, 7, 100] if len(expected) < 60 else [20, 50, 5000],
                rng,
                query=query.text(),
                start=start_ns,
                end=end_ns,
                direction=direction,
            )
            for one in page["records"]
        ]
        if direction == "backward":
            found.reverse()

        assert [one["id"] for one in found] == [row.id for row in expected], query.text()
        assert [(one["message"], one["labels"]) for one in found] == [
            (row.message, row.labels) for row in expected
        ]


@pytest.mark.parametrize("direction", ["backward", "forward"])
async def test_merges_between_pages_change_nothing(client, tenant, direction):
    rng = random.Random(direction)
    now_ns = time.time_ns()
    rows = await fill(tenant, rng, now_ns, commits=14)

    found = []
    async for page in pages(
        client, [5, 11, 60], rng, query="{}", start=now_ns - 2 * HOUR_NS, direction=direction
    ):
        found += [one["id"] for one in page["records"]]
        await merge_some(tenant, rng)

    assert found == [row.id for row in sorted(rows, reverse=direction == "backward")]


async def test_a_budget_of_bytes_ends_pages_early_and_loses_nothing(tenant, client_of):
    await tenant.control.set_tenant(tenant.id, "active", 30, {"quotas": {"queryScanBytes": 1}})
    rng = random.Random(5)
    now_ns = time.time_ns()
    rows = []
    for age in range(12):  # each over an hour, beginning six minutes before the last
        times = [now_ns - age * HOUR_NS // 10 - n * HOUR_NS // 20 for n in range(20)]
        rows += await store_rows(tenant, [record(f"{age} {t}", timestamp=t) for t in times])
    client = await client_of(await tenant.api_key(keys.SCOPE_QUERY), tenant)

    asked = {"query": '{} |= ""', "start": now_ns - 3 * HOUR_NS}
    found = [page async for page in pages(client, [1000], rng, **asked)]

    assert {page["stopped"] for page in found[:-1]} == {"bytes"}
    assert found[-1]["stopped"] is None
    assert len(found) > 5
    assert [one["id"] for page in found for one in page["records"]] == [
        row.id for row in sorted(rows, reverse=True)
    ]


@pytest.mark.parametrize("direction", ["backward", "forward"])
async def test_records_of_one_moment_in_many_segments_have_one_order(client, tenant, direction):
    rng = random.Random(direction)
    at_ns = time.time_ns() - 10**9
    rows = []
    for _ in range(16):
        of = [record("x", timestamp=at_ns + rng.choice([0, 0, 0, 1])) for _ in range(4)]
        rows += await store_blocks(tenant, [of], age_ms=rng.randrange(60_000))

    found = [
        one["id"]
        async for page in pages(client, [3, 9], rng, query="{}", direction=direction)
        for one in page["records"]
    ]

    assert found == [row.id for row in sorted(rows, reverse=direction == "backward")]
