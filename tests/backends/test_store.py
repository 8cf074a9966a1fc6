"""One transaction of the store: each request once, and every record in the accounts."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Sequence

import builders
import draining
import psycopg
import pytest
import world
from builders import delivered, encode, record, records, request
from world import Tenant

from logweir.backends import store
from logweir.core import beside, block, errors, settle
from logweir.core.moments import NS_PER_DAY


async def commit(
    tenant: Tenant,
    *deliveries: settle.Delivery,
    by: store.Store | None = None,
    retention_days: int = 30,
) -> store.Committed:
    return await (by or tenant.store()).commit(
        tenant.pipeline, deliveries, now_ns=time.time_ns(), retention_days=retention_days
    )


def keyed(tenant: Tenant, *keys: str, text: str = "") -> settle.Delivery:
    """A block with a request of one record for each key; '' is a request without a key."""
    of = [request([record(text or f"of {key}")], key=key) for key in keys]
    return delivered(encode(tenant.id, tenant.pipeline, of))


def numbered(
    tenant: Tenant, *numbers: int, producer: bytes = b"p" * 16, epoch: int = 1
) -> settle.Delivery:
    """A block with a request of one record for each of a producer's numbers."""
    of = [
        request(
            [record(f"number {number}")],
            key=f"{producer.hex()}.{epoch}.{number}",
            producer=producer,
            epoch=epoch,
            sequence=number,
        )
        for number in numbers
    ]
    return delivered(encode(tenant.id, tenant.pipeline, of))


def ranges(tenant: Tenant) -> list[str]:
    return [row[0] for row in draining.rows(tenant, "select seen::text from producers order by 1")]


# Blocks


async def test_a_new_block_is_stored_whole(tenant):
    one = delivered(encode(tenant.id, tenant.pipeline, [request(records(3))]))
    done = await commit(tenant, one)

    assert [result.delivery for result in done.results] == [one]
    assert done.repeated == ()
    assert draining.messages(tenant) == ["message 0", "message 1", "message 2"]


async def test_a_block_that_comes_again_is_stored_once(tenant):
    one = keyed(tenant, "")
    await commit(tenant, one)
    again = await commit(tenant, one)

    assert (again.results, again.repeated) == ((), (one,))
    assert draining.stored_records(tenant) == 1
    assert draining.usage(tenant)["requests"] == 1


async def test_a_block_twice_in_one_batch_is_stored_once(tenant):
    one, other = keyed(tenant, "", text="twice"), keyed(tenant, "", text="other")
    done = await commit(tenant, one, other, one)

    assert len(done.results) == 2
    assert draining.messages(tenant) == ["other", "twice"]
    assert draining.is_balanced(tenant)


async def test_new_blocks_beside_a_repeated_one_are_stored_without_it(tenant):
    old, new = keyed(tenant, "", text="old"), keyed(tenant, "", text="new")
    await commit(tenant, old)
    done = await commit(tenant, old, new)

    assert done.repeated == (old,)
    assert draining.messages(tenant) == ["new", "old"]


async def test_a_segment_says_what_is_in_it(tenant):
    times = [time.time_ns() - 10**9, time.time_ns()]
    of = [record("a", timestamp=times[0]), record("b", timestamp=times[1], level="error")]
    one = delivered(encode(tenant.id, tenant.pipeline, [request(of)]))
    await commit(tenant, one)

    [(_, found)] = draining.segments(tenant)
    assert (found.min_ts, found.max_ts, found.n) == (times[0], times[1], 2)
    assert found.raw_bytes == one.header.size_bytes
    assert [
        dict(one)["level"] for one in beside.decode_label_sets(found.label_sets, found.codec)
    ] == [
        "info",
        "error",
    ]


async def test_records_without_a_request_s_key_are_never_repeats_of_each_other(tenant):
    await commit(tenant, keyed(tenant, "", "", text="same"), keyed(tenant, "", text="same"))

    assert draining.messages(tenant) == ["same"] * 3


async def test_a_block_without_records_leaves_its_row(tenant):
    nothing = block.part([], [], [], [])
    of = [(block.Request(0, expired, 10, 1), nothing) for expired in (2, 1)]
    await commit(tenant, delivered(encode(tenant.id, tenant.pipeline, of)))

    assert draining.segments(tenant) == []
    assert draining.outcomes(tenant)["expired"] == 3
    assert draining.is_balanced(tenant)


# Keys of any form


async def test_a_key_in_two_blocks_is_stored_once(tenant):
    await commit(tenant, keyed(tenant, "k"))
    await commit(tenant, keyed(tenant, "k"))

    assert draining.messages(tenant) == ["of k"]
    assert draining.usage(tenant)["repeated"] == 1
    assert draining.is_balanced(tenant)


async def test_a_key_twice_in_one_block_is_stored_once(tenant):
    await commit(tenant, keyed(tenant, "k", "other", "k"))

    assert draining.messages(tenant) == ["of k", "of other"]
    assert draining.is_balanced(tenant)


async def test_a_key_in_two_blocks_of_one_batch_is_stored_once(tenant):
    await commit(tenant, keyed(tenant, "k", "a"), keyed(tenant, "b", "k"))

    assert draining.messages(tenant) == ["of a", "of b", "of k"]
    assert draining.is_balanced(tenant)


async def test_the_receipt_s_row_says_which_request_was_the_first(tenant):
    first = keyed(tenant, "other", "k")
    await commit(tenant, first)
    await commit(tenant, keyed(tenant, "k"))

    query = "select block, request_index from ledger where key = %s"
    [(first_block, index)] = draining.rows(tenant, query, [builders.key_bytes("k").hex()])
    assert (first_block.bytes, index) == (first.uuid, 1)


async def test_a_key_with_another_body_is_quarantined_as_a_conflict(tenant):
    await commit(tenant, keyed(tenant, "k", text="first"))
    conflicting = keyed(tenant, "free", "k", text="second")
    await commit(tenant, conflicting)

    [(index, reason, payload)] = draining.quarantine(tenant)
    assert (index, reason) == (1, "key_conflict")
    assert b'"message":"second"' in payload
    assert draining.messages(tenant) == ["first", "second"]
    assert draining.is_balanced(tenant)


async def test_a_conflict_inside_of_one_batch_is_found_too(tenant):
    await commit(tenant, keyed(tenant, "k", text="first"), keyed(tenant, "k", text="second"))

    assert draining.messages(tenant) == ["first"]
    assert [row[1] for row in draining.quarantine(tenant)] == ["key_conflict"]
    assert draining.is_balanced(tenant)


async def test_keys_of_two_pipelines_are_not_the_same_key(make_tenant):
    tenant = await make_tenant(pipelines=("default", "audit"))
    audit = tenant.pipelines["audit"].id
    await commit(tenant, numbered(tenant, 1))
    of = request([record("in audit")], key="n", producer=b"p" * 16, epoch=1, sequence=1)
    other = delivered(encode(tenant.id, audit, [of]))
    await tenant.store().commit(audit, [other], now_ns=time.time_ns(), retention_days=30)

    assert draining.stored_records(tenant) == 2


# Keys of producers


async def test_a_producer_s_numbers_become_one_range(tenant):
    for numbers in ([5, 3], [1], [2, 4]):
        await commit(tenant, numbered(tenant, *numbers))

    assert ranges(tenant) == ["{[1,6)}"]
    assert draining.stored_records(tenant) == 5


async def test_a_producer_s_number_that_comes_again_is_dropped(tenant):
    await commit(tenant, numbered(tenant, 1, 2, 7))
    await commit(tenant, numbered(tenant, 7, 2, 3))

    assert draining.messages(tenant) == [f"number {number}" for number in (1, 2, 3, 7)]
    assert draining.usage(tenant)["repeated"] == 2
    assert draining.is_balanced(tenant)


async def test_a_number_twice_in_one_batch_is_stored_once(tenant):
    await commit(tenant, numbered(tenant, 1, 1), numbered(tenant, 1))

    assert draining.messages(tenant) == ["number 1"]
    assert draining.is_balanced(tenant)


async def test_the_starts_of_a_producer_and_other_producers_have_numbers_of_their_own(tenant):
    await commit(
        tenant,
        numbered(tenant, 1),
        numbered(tenant, 1, epoch=2),
        numbered(tenant, 1, producer=b"q" * 16),
    )

    assert draining.stored_records(tenant) == 3
    assert ranges(tenant) == ["{[1,2)}"] * 3


async def test_numbers_beyond_the_bound_of_ranges_are_remembered_in_the_ledger(tenant, monkeypatch):
    monkeypatch.setattr(settle.bounds, "MAX_PRODUCER_RANGES", 3)
    await commit(tenant, numbered(tenant, 0, 10, 20, 30, 40))
    await commit(tenant, numbered(tenant, 30, 50, 10))

    assert ranges(tenant) == ["{[0,1),[10,11),[20,21)}"]
    assert draining.messages(tenant) == [f"number {n}" for n in (0, 10, 20, 30, 40, 50)]
    assert draining.is_balanced(tenant)


async def test_a_number_from_the_ledger_is_known_when_the_ranges_have_room_again(
    tenant, monkeypatch
):
    monkeypatch.setattr(settle.bounds, "MAX_PRODUCER_RANGES", 3)
    await commit(tenant, numbered(tenant, 0, 2, 4, 30))
    await commit(tenant, numbered(tenant, 1, 3))
    await commit(tenant, numbered(tenant, 30))

    assert draining.messages(tenant).count("number 30") == 1
    assert draining.is_balanced(tenant)


async def test_a_number_beyond_the_bound_is_of_one_pipeline_only(make_tenant, monkeypatch):
    monkeypatch.setattr(settle.bounds, "MAX_PRODUCER_RANGES", 1)
    tenant = await make_tenant(pipelines=("default", "audit"))
    audit = tenant.pipelines["audit"].id
    for pipeline in (tenant.pipeline, audit):
        of = [
            request([record(f"{n}")], key=f"{n}", producer=b"p" * 16, epoch=1, sequence=n)
            for n in (0, 10, 20)
        ]
        one = delivered(encode(tenant.id, pipeline, of))
        await tenant.store().commit(pipeline, [one], now_ns=time.time_ns(), retention_days=30)

    assert draining.stored_records(tenant) == 6


async def test_the_largest_number_can_be_remembered(tenant):
    largest = 10**18 - 1
    await commit(tenant, numbered(tenant, largest, epoch=largest))

    assert ranges(tenant) == [f"{{[{largest},{largest + 1})}}"]


# Two at the same time


async def both(tenant: Tenant, *batches: Sequence[settle.Delivery]) -> list[store.Committed]:
    """Commit batches in transactions that overlap: all wait for a lock before the first ends."""
    with draining.stalled_commits(tenant):
        running = [asyncio.create_task(commit(tenant, *batch)) for batch in batches]
        await draining.waiting_backends(tenant, len(batches))
    return await asyncio.gather(*running)


async def test_one_block_in_two_transactions_is_stored_by_one_of_them(tenant):
    one = keyed(tenant, "")
    done = await both(tenant, [one], [one])

    assert sorted(len(each.results) for each in done) == [0, 1]
    assert draining.stored_records(tenant) == 1
    assert draining.is_balanced(tenant)


async def test_one_key_in_two_transactions_is_stored_by_one_of_them(tenant):
    await both(tenant, [keyed(tenant, "k", "a")], [keyed(tenant, "b", "k")])

    assert draining.messages(tenant) == ["of a", "of b", "of k"]
    assert draining.usage(tenant)["repeated"] == 1
    assert draining.is_balanced(tenant)


async def test_one_key_with_two_bodies_in_two_transactions_is_a_conflict_in_one(tenant):
    await both(tenant, [keyed(tenant, "k", text="a")], [keyed(tenant, "k", text="b")])

    assert len(draining.messages(tenant)) == 1
    assert [row[1] for row in draining.quarantine(tenant)] == ["key_conflict"]
    assert draining.is_balanced(tenant)


async def test_one_number_in_two_transactions_is_stored_by_one_of_them(tenant):
    await commit(tenant, numbered(tenant, 0))
    await both(tenant, [numbered(tenant, 1, 2)], [numbered(tenant, 2, 3)])

    assert draining.messages(tenant) == [f"number {number}" for number in range(4)]
    assert ranges(tenant) == ["{[0,4)}"]
    assert draining.is_balanced(tenant)


async def test_the_first_numbers_of_a_producer_in_two_transactions_are_all_kept(tenant):
    await both(tenant, [numbered(tenant, 1, 2)], [numbered(tenant, 2, 3)])

    assert draining.messages(tenant) == [f"number {number}" for number in (1, 2, 3)]
    assert ranges(tenant) == ["{[1,4)}"]
    assert draining.is_balanced(tenant)


async def test_batches_in_opposite_orders_do_not_wait_for_each_other_in_a_circle(tenant):
    names = [f"k{number}" for number in range(40)]
    insert = "insert into ledger (key) values (%s)"

    with draining.connect(tenant) as holder, holder.transaction(force_rollback=True):
        # Both are stopped half-way, where each of them holds keys that the other needs next.
        middle = sorted(builders.key_bytes(name) for name in names)[20]
        holder.execute(insert, [middle.hex()])
        running = [
            asyncio.create_task(commit(tenant, keyed(tenant, *order)))
            for order in (names, names[::-1])
        ]
        await draining.waiting_backends(tenant, 2)
    await asyncio.gather(*running)

    assert draining.stored_records(tenant) == 40
    assert draining.is_balanced(tenant)


# Unknown outcomes


@contextlib.asynccontextmanager
async def commits_that_hang(tenant: Tenant) -> AsyncIterator[None]:
    """Every COMMIT takes place, but waits for ever for a standby before it answers."""
    with psycopg.connect(tenant.postgres.url(), autocommit=True) as connection:
        connection.execute("alter system set synchronous_standby_names = 'nobody'")
        connection.execute("select pg_reload_conf()")
        try:
            yield
        finally:
            connection.execute("alter system reset synchronous_standby_names")
            connection.execute("select pg_reload_conf()")


async def test_a_connection_lost_in_the_commit_leaves_an_outcome_that_settles_itself(
    make_tenant, spare_postgres
):
    tenant = await make_tenant(store=spare_postgres)
    door, one = tenant.store(), keyed(tenant, "k", "")
    await commit(tenant, keyed(tenant, ""), by=door)
    user = tenant.store_login("w").user
    of_waiting = "select {} from pg_stat_activity where usename = %s and wait_event = 'SyncRep'"

    async with commits_that_hang(tenant):
        first = asyncio.create_task(commit(tenant, one, by=door))
        await draining.until(lambda: draining.rows(tenant, of_waiting.format("1"), [user]))
        draining.rows(tenant, of_waiting.format("pg_terminate_backend(pid)"), [user])
        with pytest.raises(errors.UnavailableError):
            await first
    again = await commit(tenant, one, by=door)

    assert (again.results, again.repeated) == ((), (one,))
    assert draining.stored_records(tenant) == 3
    assert draining.is_balanced(tenant)


async def test_a_transaction_that_is_cut_leaves_nothing(tenant):
    door = tenant.store()
    with draining.stalled_commits(tenant):
        first = asyncio.create_task(commit(tenant, keyed(tenant, "k"), by=door))
        await draining.waiting_backends(tenant)
        query = "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s"
        draining.rows(tenant, query, [tenant.store_login("w").user])
        with pytest.raises(errors.UnavailableError):
            await first
    rows = draining.rows(tenant, "select * from ledger")
    await commit(tenant, keyed(tenant, "k"), by=door)

    assert rows == []
    assert draining.messages(tenant) == ["of k"]


async def test_a_store_that_does_not_answer_in_time_is_given_up(tenant, monkeypatch):
    monkeypatch.setattr(store, "COMMIT_TIMEOUT_S", 0.2)
    door = tenant.store()
    with draining.stalled_commits(tenant), pytest.raises(errors.UnavailableError):
        await commit(tenant, keyed(tenant, "k"), by=door)
    await commit(tenant, keyed(tenant, "k"), by=door)

    assert draining.messages(tenant) == ["of k"]


async def test_what_postgres_refuses_leaves_nothing_and_the_store_goes_on(tenant):
    door = tenant.store()
    payload = encode(tenant.id, tenant.pipeline, [request(records(1))], refused={"a\0": 1})
    with pytest.raises(store.RefusedByStoreError) as caught:
        await commit(tenant, delivered(payload), keyed(tenant, "k"), by=door)
    rows = draining.rows(tenant, "select * from ledger")
    await commit(tenant, keyed(tenant, "k"), by=door)

    assert rows == []
    assert "\n" not in caught.value.message
    assert draining.messages(tenant) == ["of k"]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("drop table {}.usage", id="a table is gone"),
        pytest.param("revoke insert on {}.usage from {}_w_a", id="a right is missing"),
        pytest.param("alter role {}_w_a nologin", id="the login is closed"),
    ],
)
async def test_what_is_wrong_with_the_store_is_no_fault_of_the_block(tenant, damage):
    draining.rows(tenant, damage.format(tenant.schema, tenant.schema))

    with pytest.raises(errors.UnavailableError):
        await commit(tenant, keyed(tenant, "k"))
    assert draining.rows(tenant, "select * from ledger") == []


# The accounts


async def test_a_transaction_s_usage_counts_all_that_became_of_its_records(tenant):
    old = record("old", timestamp=time.time_ns() - 40 * NS_PER_DAY)
    fresh = [request([record("a"), record("b"), old], key="k"), request([record("c")], expired=5)]
    one = delivered(encode(tenant.id, tenant.pipeline, fresh, refused={"too_large": 2}))
    bad = settle.Delivery("1-0", world.new_uuid(), 7, b"bad", problem="undecodable")
    await commit(tenant, keyed(tenant, "k", text="first"))
    await commit(tenant, one, bad)

    query = (
        "select requests, stored, quarantined, expired, repeated, refused from usage"
        " order by quarantined desc limit 1"
    )
    assert draining.rows(tenant, query) == [(3, 1, 10, 5, 0, {"too_large": 2})]
    assert draining.is_balanced(tenant)


async def test_the_bytes_of_usage_are_those_of_the_segments(tenant):
    blocks = [keyed(tenant, "a", text="x" * 1000), keyed(tenant, "b", "a", text="y" * 1000)]
    await commit(tenant, *blocks)

    raw, stored = draining.rows(tenant, "select raw_bytes, stored_bytes from usage")[0]
    of_segments = "select sum(raw_bytes)::int8, sum(length(body) + length(filter)) from segments"
    assert draining.rows(tenant, of_segments) == [(raw, stored)]
    assert 2000 < raw < 3000


async def test_a_repeated_batch_adds_nothing_to_the_accounts(tenant):
    blocks = [keyed(tenant, "a"), keyed(tenant, "")]
    await commit(tenant, *blocks)
    before = draining.rows(tenant, "select * from usage")
    await commit(tenant, *blocks)

    assert draining.rows(tenant, "select * from usage") == before


async def test_a_receipt_s_outcome_stands_in_the_ledger_by_request(tenant):
    await commit(tenant, keyed(tenant, "a"))
    one = keyed(tenant, "a", "b", text="other")
    await commit(tenant, one)

    query = "select outcomes from ledger where kind = 'b' and key = %s"
    assert draining.rows(tenant, query, [one.uuid.hex()]) == [([0, 1, 0, 0, 1, 0, 0, 0],)]


def test_a_password_with_any_characters_fits_into_a_connection_string(postgres):
    login = world.Login("user", f"a'b\\c d{secrets.token_hex(4)}=")
    text = store.conninfo(world.store_server(postgres), login, "a test's")

    assert psycopg.conninfo.conninfo_to_dict(text)["password"] == login.password
