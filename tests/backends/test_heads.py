"""The cache of segments' heads: what is read once is not asked again, and memory is bounded."""

from __future__ import annotations

import time

import msgspec
import pytest
from builders import record
from querying import store_rows

from logweir.backends.heads import Head, HeadCache
from logweir.backends.segments_reader import Reader
from logweir.core import beside, errors
from logweir.core.names import PipelineId, TenantId

ONE, OTHER = TenantId("one"), TenantId("other")
INFO = (("level", "info"), ("service", "shop"))


def head(cache: HeadCache, tenant: TenantId, number: int, **more) -> Head:
    fields = {
        "raw_label_sets": beside.encode_label_sets((INFO,)),
        "raw_counts": b"",
        "codec": 2,
    } | more
    return Head(
        table=cache.table(tenant),
        id=number,
        pipeline=PipelineId(1),
        min_ts=0,
        max_ts=9,
        n=1,
        layout=b"",
        **fields,
    )


def test_what_was_put_is_found_by_its_tenant_alone():
    cache = HeadCache()
    cache.put(ONE, [head(cache, ONE, 7)])

    assert cache.get(ONE, 7, 0) is not None
    assert cache.get(OTHER, 7, 0) is None
    assert cache.get(ONE, 7, 1) is None


def test_memory_is_bounded_and_what_was_used_last_stays():
    cache = HeadCache(max_bytes=5 * head(HeadCache(), ONE, 0).size_bytes)
    for number in range(5):
        cache.put(ONE, [head(cache, ONE, number)])
    cache.get(ONE, 0, 0)

    cache.put(OTHER, [head(cache, OTHER, 9)])

    kept = [number for number in range(5) if cache.get(ONE, number, 0)]
    assert kept == [0, 2, 3, 4]
    assert cache.get(OTHER, 9, 0) is not None


def test_a_tenant_that_is_forgotten_leaves_nothing():
    cache = HeadCache()
    cache.put(ONE, [head(cache, ONE, 1)])
    cache.put(OTHER, [head(cache, OTHER, 1)])
    before = cache.size_bytes

    cache.forget(ONE)

    assert cache.get(ONE, 1, 0) is None
    assert cache.size_bytes == before / 2


def test_a_table_with_too_many_label_sets_is_begun_anew(monkeypatch):
    monkeypatch.setattr("logweir.backends.heads.MAX_LABEL_SETS", 3)
    cache = HeadCache()
    cache.put(ONE, [head(cache, ONE, 1)])
    old = cache.table(ONE)
    old.ids([(("a", str(at)),) for at in range(4)])

    assert cache.table(ONE) is not old
    assert cache.get(ONE, 1, 0) is None


def test_a_head_of_a_table_that_was_given_up_is_not_kept():
    cache = HeadCache()
    late = head(cache, ONE, 1)
    cache.forget(ONE)
    cache.table(ONE)

    cache.put(ONE, [late])

    assert cache.get(ONE, 1, 0) is None


def test_a_damaged_head_is_refused_when_it_is_opened_and_not_before():
    cache = HeadCache()
    cache.put(ONE, [head(cache, ONE, 1, raw_label_sets=b"xx")])
    found = cache.get(ONE, 1, 0)
    assert found is not None

    with pytest.raises(errors.FormatError):
        _ = found.label_ids


async def test_heads_are_read_from_the_store_once(make_tenant):
    tenant = await make_tenant()
    await store_rows(tenant, [record("one", timestamp=time.time_ns())])
    await store_rows(tenant, [record("two", timestamp=time.time_ns())])
    cache = HeadCache()
    reader = Reader(tenant.store_server, tenant.store_login("r"), tenant.id, 2, heads=cache)
    async with reader.snapshot() as snapshot:
        keys = await snapshot.keys({tenant.pipeline: 0}, 2**62)
        first = await snapshot.heads(keys)
        again = await snapshot.heads(keys)
    await reader.close()

    assert [id(one) for one in first] == [id(one) for one in again]
    assert [one.id for one in first] == keys.id.tolist()
    assert len({one.table for one in first}) == 1
    assert cache.size_bytes == 0  # what a closed reader knew is gone
    assert msgspec.structs.asdict(first[0])["n"] == 1
