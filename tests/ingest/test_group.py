"""Group commit: requests share blocks, and each gets the answer that is its own."""

from __future__ import annotations

import asyncio
import secrets

import builders
import ingest_door
import msgspec
import pytest
from builders import record
from hypothesis import given
from hypothesis import strategies as st

from logweir.backends import journal, provision
from logweir.core import block, bounds, errors, ids, names
from logweir.core.names import PipelineId
from logweir.ingest import group


class Gated(journal.Appender):
    """The real journal behind a gate: blocks wait there while it is closed."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrived: list[bytes] = []

    async def append(self, pipeline, uuid, payload, **counts):
        self.arrived.append(payload)
        await self.gate.wait()
        return await super().append(pipeline, uuid, payload, **counts)


@pytest.fixture
async def appender(tenant):
    made = Gated(tenant.journal_server, tenant.journal_login("in"), tenant.id)
    yield made
    await made.close()


@pytest.fixture
async def one_group(tenant, appender):
    made = group.Group(tenant.id, tenant.pipeline, appender)
    yield made
    appender.gate.set()
    await made.drain()


def submit(to: group.Group, message: str, *, key: str = "", **fields) -> asyncio.Task:
    """Hand in a request of one record, without waiting for its answer."""
    request, part = builders.request([record(message)], key=key, **fields)
    return asyncio.create_task(to.submit(request, part))


async def turns(count: int = 5) -> None:
    """Let the loop turn, so that what is due happens."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(true, wait_s: float = 5.0) -> None:
    async with asyncio.timeout(wait_s):
        while not true():
            await asyncio.sleep(0.001)


async def messages_of(tenant, receipt: ids.Receipt) -> list[str]:
    """The messages of the request that a receipt names."""
    for entry in await ingest_door.entries(tenant):
        if entry.uuid == receipt.block:
            where = block.request_slices(block.header(entry.payload))[receipt.index]
            return [one["message"] for one in ingest_door.records_of(entry.payload)][where]
    return []


async def headers(tenant) -> list[block.Header]:
    return [block.header(entry.payload) for entry in await ingest_door.entries(tenant)]


async def test_concurrent_requests_share_blocks_and_each_receipt_names_its_own(tenant, one_group):
    tasks = [submit(one_group, f"m{number}") for number in range(100)]

    outcomes = await asyncio.gather(*tasks)

    assert len(await ingest_door.entries(tenant)) < 10
    for number, outcome in enumerate(outcomes):
        assert await messages_of(tenant, outcome.receipt) == [f"m{number}"]


async def test_concurrent_posts_share_blocks(door):
    answers = await asyncio.gather(*(door.post(record(f"m{n}")) for n in range(60)))

    assert {one.status_code for one in answers} == {200}
    assert len({one.json()["receipt"] for one in answers}) == 60
    assert len(await ingest_door.stored(door.tenant)) == 60
    assert len(await ingest_door.entries(door.tenant)) < 60


async def test_a_lone_request_does_not_wait_for_company(one_group, monkeypatch):
    monkeypatch.setattr(group, "LINGER_S", 3600)

    async with asyncio.timeout(5):
        await submit(one_group, "first")
        await submit(one_group, "second")


async def test_what_waits_goes_when_nothing_is_in_flight_any_more(appender, one_group, monkeypatch):
    monkeypatch.setattr(group, "LINGER_S", 3600)
    appender.gate.clear()
    first = submit(one_group, "first")
    await until(lambda: appender.arrived)
    second = submit(one_group, "second")
    await turns()
    assert len(appender.arrived) == 1

    appender.gate.set()

    async with asyncio.timeout(5):
        await asyncio.gather(first, second)


async def test_a_request_lingers_ten_milliseconds_at_most_however_many_follow(appender, one_group):
    appender.gate.clear()
    tasks = [submit(one_group, "in flight")]
    await until(lambda: appender.arrived)

    loop = asyncio.get_running_loop()
    started_s = loop.time()
    while len(appender.arrived) < 2 and loop.time() < started_s + 5:
        tasks.append(submit(one_group, "more", size_bytes=1))
        await asyncio.sleep(0)

    assert loop.time() - started_s < 0.5
    appender.gate.set()
    await asyncio.gather(*tasks)


async def test_a_first_request_is_not_put_off_by_those_that_follow(appender, one_group):
    submitted = 0

    async def submit_after(turns: int) -> None:
        nonlocal submitted
        request, part = builders.request([record("m")])
        for _ in range(turns):
            await asyncio.sleep(0)
        submitted += 1
        await one_group.submit(request, part)

    # In reverse, so that in each turn of the loop one comes just before the block would go.
    tasks = [asyncio.create_task(submit_after(turns)) for turns in range(100, 0, -1)]
    while not appender.arrived:
        await asyncio.sleep(0)

    assert submitted < 20
    await asyncio.gather(*tasks)


async def test_much_that_waits_goes_at_once(appender, one_group, monkeypatch):
    monkeypatch.setattr(group, "LINGER_S", 3600)
    appender.gate.clear()
    tasks = [submit(one_group, "in flight")]
    await until(lambda: appender.arrived)

    tasks.append(submit(one_group, "large", size_bytes=group.FULL_BYTES))

    await until(lambda: len(appender.arrived) == 2)
    appender.gate.set()
    await asyncio.gather(*tasks)


async def test_so_many_appends_are_in_flight_and_no_more(appender, one_group):
    appender.gate.clear()
    tasks = [submit(one_group, f"{n}", size_bytes=group.MAX_BYTES) for n in range(12)]
    await until(lambda: len(appender.arrived) == group.MAX_IN_FLIGHT)
    await asyncio.sleep(2 * group.LINGER_S)

    assert len(appender.arrived) == group.MAX_IN_FLIGHT
    appender.gate.set()
    assert len({one.receipt for one in await asyncio.gather(*tasks)}) == 12


async def test_a_key_twice_in_a_group_is_one_request_and_its_repeat(tenant, one_group):
    first, again = submit(one_group, "m", key="k"), submit(one_group, "m", key="k")
    beside = submit(one_group, "other")

    first_outcome = await first
    assert await again == group.Outcome(first_outcome.receipt, is_repeated=True)
    assert not (await beside).is_repeated
    assert len(await ingest_door.stored(tenant)) == 2


async def test_a_key_twice_in_a_group_with_another_body_is_a_conflict(tenant, one_group):
    first = submit(one_group, "m", key="k")
    again = submit(one_group, "n", key="k", fingerprint=1)

    assert not (await first).is_repeated
    with pytest.raises(errors.KeyConflictError):
        await again
    assert [one["message"] for one in await ingest_door.stored(tenant)] == ["m"]


async def test_conflicts_drop_only_themselves(tenant, one_group):
    await submit(one_group, "old", key="k")
    tasks = [
        submit(one_group, "a"),
        submit(one_group, "new", key="k", fingerprint=1),
        submit(one_group, "b", key="fresh"),
        submit(one_group, "new", key="k2"),
    ]

    done = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(done[1], errors.KeyConflictError)
    assert [await messages_of(tenant, done[n].receipt) for n in (0, 2, 3)] == [
        ["a"],
        ["b"],
        ["new"],
    ]
    assert [len(one.requests) for one in await headers(tenant)] == [1, 3]


async def test_repeats_among_others_are_named_in_the_entry_and_get_the_first_receipt(
    tenant, one_group
):
    first = await submit(one_group, "old", key="k")
    tasks = [
        submit(one_group, "a"),
        submit(one_group, "old", key="k"),
        submit(one_group, "b", key="fresh"),
    ]

    done = await asyncio.gather(*tasks)

    assert done[1] == group.Outcome(first.receipt, is_repeated=True)
    assert [one.is_repeated for one in done] == [False, True, False]
    assert await messages_of(tenant, done[2].receipt) == ["b"]
    assert [entry.repeats for entry in await ingest_door.entries(tenant)] == [set(), {1}]


async def test_a_group_of_only_repeats_leaves_no_entry(tenant, one_group):
    await asyncio.gather(*(submit(one_group, f"{n}", key=f"{n}") for n in range(3)))
    before = len(await ingest_door.entries(tenant))

    again = await asyncio.gather(*(submit(one_group, f"{n}", key=f"{n}") for n in range(3)))

    assert all(one.is_repeated for one in again)
    assert len(await ingest_door.entries(tenant)) == before


async def test_refusals_ride_in_the_next_block_once(tenant, one_group):
    one_group.refuse("too_large")
    one_group.refuse("too_large")
    one_group.refuse("bad_request")

    await submit(one_group, "a")
    await submit(one_group, "b")

    found = [one.refused for one in await headers(tenant)]
    assert found == [{"too_large": 2, "bad_request": 1}, {}]


async def test_refusals_wait_for_a_block_that_goes_in(tenant, one_group, appender):
    await submit(one_group, "old", key="k")
    one_group.refuse("bad_request")
    appender.gate.clear()
    repeat = submit(one_group, "old", key="k")
    await until(lambda: len(appender.arrived) == 2)
    one_group.refuse("bad_request")
    appender.gate.set()
    await repeat

    await submit(one_group, "new")

    assert [one.refused for one in await headers(tenant)] == [{}, {"bad_request": 2}]


async def test_refusals_survive_a_conflict_and_an_append_that_fails(tenant, one_group):
    await submit(one_group, "old", key="k")
    one_group.refuse("bad_request")
    conflict = submit(one_group, "new", key="k", fingerprint=1)
    with pytest.raises(errors.KeyConflictError):
        await conflict
    await set_state(tenant, "readonly")
    with pytest.raises(errors.ForbiddenError):
        await submit(one_group, "closed")
    await set_state(tenant, "active")

    await submit(one_group, "open")

    assert [one.refused for one in await headers(tenant)] == [{}, {"bad_request": 1}]


async def set_state(tenant, state: str) -> None:
    row = msgspec.structs.replace(tenant.row, state=state)
    pipelines = list(tenant.pipelines.values())
    await provision.provision_journal(tenant.redis, row, pipelines, tenant.roots, tenant.limits)


async def test_each_refusal_over_http_is_counted_once_by_its_code(door):
    await door.post(record("one"), headers={"Idempotency-Key": "k"})
    await door.post(record("two"), headers={"Idempotency-Key": "k"})
    await door.post(b"no json")
    await door.post([{}])
    await door.post(record(), headers={"Content-Encoding": "br"})
    await door.post(record(), key="wrong")

    await door.post(record("last"))

    assert (await headers(door.tenant))[-1].refused == {
        "key_conflict": 1,
        "bad_request": 1,
        "all_rejected": 1,
        "unsupported_media_type": 1,
    }


async def test_a_request_that_cannot_be_encoded_does_not_stop_the_group(tenant, one_group, caplog):
    request, part = builders.request([record("m")])
    broken_part = msgspec.structs.replace(part, label_sets=[object()])
    broken = asyncio.create_task(one_group.submit(request, broken_part))
    beside = submit(one_group, "beside")

    done = await asyncio.gather(broken, beside, return_exceptions=True)
    await submit(one_group, "after")

    assert [type(one) for one in done] == [errors.UnavailableError] * 2
    assert "TypeError" in caplog.text
    assert [one["message"] for one in await ingest_door.stored(tenant)] == ["after"]


async def test_a_sender_who_is_gone_does_not_take_the_others_along(tenant, one_group, appender):
    appender.gate.clear()
    gone, stays = submit(one_group, "gone"), submit(one_group, "stays")
    await until(lambda: appender.arrived)

    gone.cancel()
    appender.gate.set()

    assert await messages_of(tenant, (await stays).receipt) == ["stays"]


async def test_draining_waits_for_all_that_was_handed_in(tenant, one_group, appender):
    appender.gate.clear()
    tasks = [submit(one_group, f"{n}", size_bytes=group.MAX_BYTES) for n in range(12)]
    await turns()
    draining = asyncio.create_task(one_group.drain())
    await turns()
    assert not draining.done()

    appender.gate.set()
    await draining

    await turns()
    assert all(task.done() for task in tasks)
    assert len(await ingest_door.stored(tenant)) == 12


# --- what goes into a block -----------------------------------------------------------------------


@st.composite
def queues(draw) -> list[group._Waiting]:
    sizes = st.integers(0, 2 * group.MAX_BYTES)
    counts = st.integers(0, bounds.MAX_RECORDS)
    found = draw(
        st.lists(st.tuples(sizes, counts, st.sampled_from([b"", b"a", b"b"])), max_size=12)
    )
    return [
        group._Waiting(
            request=block.Request(count, 0, size, 0, key=key),
            part=block.part([], [], [], []),
            answer=None,
        )
        for size, count, key in found
    ]


@given(queues())
def test_a_block_is_within_its_bounds_holds_each_key_once_and_keeps_the_order(queue):
    taken, left = group.take(queue)

    keys = [one.request.key for one in taken if one.request.key]
    assert len(keys) == len(set(keys))
    assert [one for one in queue if one in taken] == taken
    assert [one for one in queue if one in left] == left
    assert len(taken) + len(left) == len(queue)
    if len(taken) > 1:
        assert sum(one.request.size_bytes for one in taken) <= group.MAX_BYTES
        assert sum(one.request.records for one in taken) <= bounds.MAX_RECORDS


@given(queues())
def test_everything_goes_in_the_end_and_a_key_in_the_order_it_came(queue):
    blocks, left = [], queue
    while left:
        taken, left = group.take(left)
        assert taken
        blocks.append(taken)

    for key in (b"a", b"b"):
        went = [one for taken in blocks for one in taken if one.request.key == key]
        assert went == [one for one in queue if one.request.key == key]


def test_only_requests_with_a_key_are_asked_for():
    requests = [block.Request(1, 0, 1, 9, key=key) for key in (b"", b"k" * 16, b"")]
    waiting = [group._Waiting(one, block.part([], [], [], []), None) for one in requests]

    assert group.keyed(waiting) == [journal.KeyedRequest(1, b"k" * 16, 9)]


async def test_two_pipelines_have_groups_of_their_own(make_tenant):
    tenant = await make_tenant(pipelines=("default", "audit"))
    appender = tenant.appender()
    groups = {
        name: group.Group(tenant.id, PipelineId(one.id), appender)
        for name, one in tenant.pipelines.items()
    }

    await asyncio.gather(*(submit(one, name) for name, one in groups.items()))

    for name, one in tenant.pipelines.items():
        assert [r["message"] for r in await ingest_door.stored(tenant, one.id)] == [name]


async def test_a_request_that_never_fits_is_refused_and_its_company_is_not(
    tenant, appender, one_group
):
    await limit_buffer(tenant, 8000)
    appender.gate.clear()
    first = submit(one_group, "first")
    await until(lambda: appender.arrived)
    small = [submit(one_group, f"{number}") for number in range(4)]
    large = submit(one_group, secrets.token_hex(20_000))
    small += [submit(one_group, f"{number}") for number in range(4, 9)]
    await turns()
    appender.gate.set()

    *taken, refused = await asyncio.gather(first, *small, large, return_exceptions=True)

    assert isinstance(refused, errors.TooLargeError)
    assert "8000 bytes" in refused.message
    messages = [await messages_of(tenant, one.receipt) for one in taken]
    assert messages == [["first"], *([f"{number}"] for number in range(9))]
    assert len({one.receipt.block for one in taken}) > 2, "the large one was in a block of theirs"


async def limit_buffer(tenant, max_bytes: int) -> None:
    """As the operator sets quotas.bufferBytes."""
    key = names.journal_tenant(tenant.id) + "m"
    await tenant.redis.hset(key, mapping={"max_bytes": max_bytes})
