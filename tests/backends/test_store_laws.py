"""Whatever is delivered, in whatever order, to two stores at once: each request is stored once."""

from __future__ import annotations

import asyncio
import collections
import itertools
import time
from collections.abc import Sequence

import draining
import msgspec
import pytest
from builders import delivered, encode, record, request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from world import Tenant

from logweir.backends.store import Store
from logweir.core import columns, segment, settle
from logweir.core.moments import NS_PER_DAY
from logweir.core.names import PipelineId

RETENTION_DAYS = 30

_pipelines = itertools.count(1000)


class Sent(msgspec.Struct, frozen=True):
    """A request as a sender knows it: `key` of some form ('' for none), and which body."""

    key: str
    body: int
    fresh: int
    old: int


free_keys = st.sampled_from(["a", "b", "c"])
numbers = st.integers(0, 3).map(lambda number: f"p1.{number}")
sent = st.builds(
    Sent,
    key=st.one_of(st.just(""), free_keys, numbers),
    body=st.integers(0, 1),
    fresh=st.integers(0, 3),
    old=st.integers(0, 1),
)
blocks = st.lists(st.lists(sent, min_size=1, max_size=4), min_size=1, max_size=6)
batch = st.lists(st.integers(0, 5), max_size=2)
schedules = st.lists(st.tuples(batch, batch), min_size=1, max_size=4)


@pytest.fixture
def doors(tenant: Tenant) -> tuple[Store, Store]:
    return tenant.store(), tenant.store()


def made(tenant: Tenant, pipeline: PipelineId, of: Sequence[Sent]) -> settle.Delivery:
    """The block of these requests; keys belong to the pipeline, as ingest makes them."""
    requests = []
    for one in of:
        now_ns = time.time_ns()
        texts = [record(f"{one.key}/{one.body}") for _ in range(one.fresh)]
        texts += [
            record("old", timestamp=now_ns - (RETENTION_DAYS + 2) * NS_PER_DAY)
            for _ in range(one.old)
        ]
        if not texts:
            texts = [record(f"{one.key}/{one.body}")]
        number = int(one.key[3:]) if one.key.startswith("p1.") else 0
        fields = (
            {"producer": b"p" * 16, "epoch": 1, "sequence": number}
            if one.key.startswith("p1.")
            else {}
        )
        key = f"{pipeline}/{one.key}" if one.key else ""
        requests.append(request(texts, key=key, fingerprint=one.body, **fields))
    return delivered(encode(tenant.id, pipeline, requests))


def sums(tenant: Tenant, pipeline: PipelineId) -> tuple[settle.Outcome, settle.Outcome]:
    """What usage says of a pipeline, and what the ledger says."""
    [of_usage] = draining.rows(
        tenant,
        "select coalesce(sum(stored), 0)::int8, coalesce(sum(quarantined), 0)::int8,"
        " coalesce(sum(expired), 0)::int8, coalesce(sum(repeated), 0)::int8"
        " from usage where pipeline = %s",
        [pipeline],
    )
    query = "select outcomes from ledger where kind = 'b' and pipeline = %s"
    rows = [row[0] for row in draining.rows(tenant, query, [pipeline])]
    of_ledger = [sum(sum(one[place::4]) for one in rows) for place in range(4)]
    return settle.Outcome(*of_usage), settle.Outcome(*of_ledger)


def stored(tenant: Tenant, pipeline: PipelineId) -> collections.Counter[str]:
    """The messages in a pipeline's segments."""
    parts = [one for _, one in draining.segments(tenant) if one.pipeline == pipeline]
    found = [segment.decode(one) for one in parts]
    return collections.Counter(
        text.decode() for c in found for text in columns.split(c.message, c.n)
    )


async def deliver(
    tenant: Tenant,
    doors: tuple[Store, Store],
    pipeline: PipelineId,
    of: Sequence[settle.Delivery],
    schedule: Sequence[tuple[list[int], list[int]]],
) -> None:
    """Commit batches at two stores side by side, then once more all that there is."""
    everything = list(range(len(of)))
    for batches in [*schedule, (everything, everything[::-1])]:
        await asyncio.gather(
            *(
                door.commit(
                    pipeline,
                    [of[number % len(of)] for number in numbers_of],
                    now_ns=time.time_ns(),
                    retention_days=RETENTION_DAYS,
                )
                for door, numbers_of in zip(doors, batches, strict=True)
                if numbers_of
            )
        )


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(blocks, schedules)
async def test_every_accepted_record_has_one_outcome(tenant, doors, sent_blocks, schedule):
    pipeline = PipelineId(next(_pipelines))
    of = [made(tenant, pipeline, one) for one in sent_blocks]
    await deliver(tenant, doors, pipeline, of, schedule)

    of_usage, of_ledger = sums(tenant, pipeline)
    assert of_usage == of_ledger
    assert sum(msgspec.structs.astuple(of_usage)) == sum(one.accepted for one in of)
    assert stored(tenant, pipeline).total() == of_usage.stored


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(blocks, schedules)
async def test_every_key_is_stored_with_one_of_its_bodies_and_once(
    tenant, doors, sent_blocks, schedule
):
    pipeline = PipelineId(next(_pipelines))
    # One record each: what is stored counts the requests.
    plain = [[Sent(one.key, one.body, 1, 0) for one in of] for of in sent_blocks]
    await deliver(tenant, doors, pipeline, [made(tenant, pipeline, one) for one in plain], schedule)

    found = stored(tenant, pipeline)
    keyed = collections.Counter[str]()
    for text, count in found.items():
        keyed[text.partition("/")[0]] += count
    requests = [one for of in plain for one in of]
    assert keyed.pop("", 0) == sum(not one.key for one in requests)
    assert keyed == dict.fromkeys({one.key for one in requests if one.key}, 1)
