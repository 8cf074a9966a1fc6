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

    assert cache.get(ONE, 7, 0, 9) is not None
    assert cache.get(OTHER, 7, 0, 9) is None
    assert cache.get(ONE, 7, 1, 9) is None


def test_of_one_tenant_the_heads_that_were_used_last_stay():
    cache = HeadCache(max_bytes=5 * head(HeadCache(), ONE, 0).size_bytes)
    for number in range(5):
        cache.put(ONE, [head(cache, ONE, number)])
    cache.get(ONE, 0, 0, 9)

    cache.put(ONE, [head(cache, ONE, 5)])

    assert [number for number in range(6) if cache.get(ONE, number, 0, 9)] == [0, 2, 3, 4, 5]


def test_the_tenant_that_was_not_read_for_the_longest_time_goes_first():
    cache = HeadCache(max_bytes=3 * head(HeadCache(), ONE, 0).size_bytes)
    for tenant in (ONE, OTHER, TenantId("third")):
        cache.put(tenant, [head(cache, tenant, 1)])
    cache.get(ONE, 1, 0, 9)

    cache.put(TenantId("fourth"), [head(cache, TenantId("fourth"), 1)])

    assert cache.get(ONE, 1, 0, 9) is not None
    assert cache.get(OTHER, 1, 0, 9) is None


def test_label_sets_that_heads_brought_count_as_memory():
    many = tuple((("service", f"service-{number}"),) for number in range(1000))
    cache = HeadCache(max_bytes=100_000)
    large = head(cache, ONE, 1, raw_label_sets=beside.encode_label_sets(many))
    cache.put(ONE, [large])
    assert len(large.label_ids) == 1000
    assert cache.size_bytes > 100_000

    cache.put(OTHER, [head(cache, OTHER, 1)])

    assert cache.get(ONE, 1, 0, 9) is None
    assert cache.size_bytes < 100_000


def test_another_segment_of_the_same_number_is_not_taken_for_it():
    cache = HeadCache()
    cache.put(ONE, [head(cache, ONE, 1)])

    assert cache.get(ONE, 1, 0, 10) is None


def test_a_tenant_that_is_forgotten_leaves_nothing():
    cache = HeadCache()
    cache.put(ONE, [head(cache, ONE, 1)])
    cache.put(OTHER, [head(cache, OTHER, 1)])
    before = cache.size_bytes

    cache.forget(ONE)

    assert cache.get(ONE, 1, 0, 9) is None
    assert 0 < cache.size_bytes < before


def test_a_table_with_too_many_label_sets_is_begun_anew(monkeypatch):
    monkeypatch.setattr("logweir.backends.heads.MAX_LABEL_SETS", 3)
    cache = HeadCache()
    cache.put(ONE, [head(cache, ONE, 1)])
    old = cache.table(ONE)
    old.ids([(("a", str(at)),) for at in range(4)])

    assert cache.table(ONE) is not old
    assert cache.get(ONE, 1, 0, 9) is None


def test_a_head_of_a_table_that_was_given_up_is_not_kept():
    cache = HeadCache()
    late = head(cache, ONE, 1)
    cache.forget(ONE)
    cache.table(ONE)

    cache.put(ONE, [late])

    assert cache.get(ONE, 1, 0, 9) is None


def test_a_damaged_head_is_refused_when_it_is_opened_and_not_before():
    cache = HeadCache()
    cache.put(ONE, [head(cache, ONE, 1, raw_label_sets=b"xx")])
    found = cache.get(ONE, 1, 0, 9)
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
