"""What a search finds in a real store."""

from __future__ import annotations

import time

from builders import record, records
from world import Tenant

from logweir.query import access, engine, params
from logweir.query import plan as planning
from logweir.query.search import search


def pipelines(tenant: Tenant) -> dict:
    return {one.id: access.Pipeline(one.id, name, 30) for name, one in tenant.pipelines.items()}


async def find(tenant: Tenant, text: str, limit: int = 100, **options):
    now_ns = time.time_ns()
    window = params.Window(now_ns - 3600 * 10**9, now_ns + 10**9)
    plan = planning.plan(text, window, pipelines(tenant), now_ns, **options)
    run = engine.Run(engine.Budget(10, 1 << 30))
    return await search(tenant.reader(), plan, limit, run)


async def test_a_stored_record_is_found_by_a_word_of_its_message(tenant):
    await tenant.store_records([*records(50), record("needle in hay", level="WARNING")])

    page = await find(tenant, '{service="shop"} |= "needle"')

    assert [one.message for one in page.records] == ["needle in hay"]
    assert dict(page.records[0].labels)["level"] == "warn"
