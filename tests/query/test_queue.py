"""What waits for the client of a tail: bounded, and what is left out is counted exactly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random

import numpy as np
import pytest
from builders import encode, record, request
from hypothesis import given
from hypothesis import strategies as st

from logweir.core import access, errors
from logweir.core.columns import Columns
from logweir.core.names import PipelineId, TenantId
from logweir.query import blocks, params, tail
from logweir.query import plan as planning

PIPELINE = PipelineId(1)
NOW_NS = 1_770_000_000 * 10**9
PLAN = planning.plan(
    "{}",
    params.Window(0, NOW_NS * 2),
    {PIPELINE: access.Pipeline(PIPELINE, "default", 30_000)},
    NOW_NS,
)


def block_of(messages: list[str]) -> Columns:
    payload = encode(TenantId("acme"), PIPELINE, [request([record(m) for m in messages])])
    found = blocks.decode(payload, frozenset())
    assert found is not None
    return found


def rows_of(block: Columns) -> blocks.Rows:
    return blocks.Rows(PIPELINE, block, np.arange(block.n))


async def drain(of: tail.Tail) -> tuple[list[str], list[str], int]:
    """What a client gets that reads at last: history, live messages, missed records."""
    history: list[str] = []
    live: list[str] = []
    missed = 0
    of.fail(errors.UnavailableError("the end"))
    seen = history
    with contextlib.suppress(errors.UnavailableError):
        async for text in of.frames():
            frame = json.loads(text)
            if "live" in frame:
                seen = live
            elif "gap" in frame:
                missed += frame["gap"]["records"]
            else:
                seen += [one["message"] for one in frame["records"]]
    return history, live, missed


async def test_a_full_queue_leaves_out_the_newest_and_counts_them(monkeypatch):
    monkeypatch.setattr(tail, "QUEUE_RECORDS", 25)
    one = tail.Tail(PLAN)
    one.begin([])
    for n in range(9):
        one.offer(rows_of(block_of([f"{n} {m}" for m in range(10)])))

    _, live, missed = await drain(one)

    assert live == [f"{n} {m}" for n in range(3) for m in range(10)][:25]
    assert missed == 65


async def test_a_queue_holds_no_more_bytes_than_its_bound_but_for_one_block(monkeypatch):
    monkeypatch.setattr(tail, "QUEUE_BYTES", 1000)
    one = tail.Tail(PLAN)
    one.begin([])
    one.offer(rows_of(block_of(["x" * 5000])))
    one.offer(rows_of(block_of(["y"])))

    _, live, missed = await drain(one)

    assert [len(text) for text in live] == [5000]
    assert missed == 1


async def test_there_is_room_again_when_the_client_reads(monkeypatch):
    monkeypatch.setattr(tail, "QUEUE_RECORDS", 10)
    one = tail.Tail(PLAN)
    one.begin([])
    frames = one.frames()
    assert await anext(frames) == tail.LIVE_FRAME
    seen = []
    for n in range(3):
        one.offer(rows_of(block_of([f"{n} {m}" for m in range(15)])))
        seen += [json.loads(await anext(frames)) for _ in range(2)]
    await frames.aclose()

    assert [len(frame.get("records", [])) for frame in seen] == [10, 0] * 3
    assert [frame.get("gap") for frame in seen] == [None, {"records": 5}] * 3


@pytest.mark.parametrize("queue_records", [7, 1000])
@pytest.mark.parametrize("seed", range(5))
async def test_history_live_records_and_gap_are_all_that_was_offered(
    monkeypatch, queue_records, seed
):
    monkeypatch.setattr(tail, "QUEUE_RECORDS", queue_records)
    rng = random.Random(seed)
    offered = [block_of([f"{n} {m}" for m in range(rng.randrange(1, 6))]) for n in range(12)]
    everything = [record for of in offered for record in rows_of(of).records(PLAN)]
    one = tail.Tail(PLAN)
    begin_at = rng.randrange(13)
    history = rng.sample(everything, k=rng.randrange(len(everything)))
    for n, of in enumerate(offered):
        if n == begin_at:
            one.begin(history)
        one.offer(rows_of(of))
    if begin_at >= 12:
        one.begin(history)

    shown, live, missed = await drain(one)

    assert shown == [record.message for record in history]
    assert not set(shown) & set(live)
    assert len(shown) + len(live) + missed == len(everything)


async def test_what_waits_is_sent_before_the_end_is_told():
    one = tail.Tail(PLAN)
    one.offer(rows_of(block_of(["last words"])))
    one.begin([])

    _, live, _ = await drain(one)

    assert live == ["last words"]


async def test_frames_of_many_records_are_bounded(monkeypatch):
    monkeypatch.setattr(tail, "FRAME_BYTES", 2000)
    one = tail.Tail(PLAN)
    one.begin([])
    one.offer(rows_of(block_of(["x" * 700, "y" * 700, "z" * 5000, *["small"] * 3])))
    frames = one.frames()
    await anext(frames)
    sizes = []
    while sum(count for count, _ in sizes) < 6:
        text = await anext(frames)
        sizes.append((len(json.loads(text)["records"]), len(text)))
    await frames.aclose()

    assert all(size < 2100 or count == 1 for count, size in sizes)
    assert len(sizes) < 6


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_compact_rows_are_the_same_records(chosen):
    block = block_of([f"message {n}" for n in range(len(chosen))])
    some = blocks.Rows(PIPELINE, block, np.flatnonzero(chosen))

    assert some.compact().records(PLAN) == some.records(PLAN)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.sets(st.integers(0, 6), min_size=1))
def test_records_are_told_apart_by_their_block(numbers, wanted):
    block = block_of([f"message {n}" for n in range(len(numbers))])
    mixed = Columns(
        **{
            name: getattr(block, name)
            for name in Columns.__struct_fields__
            if name not in ("block", "index")
        },
        block=np.array(numbers, np.uint64),
        index=np.arange(len(numbers), dtype=np.uint32),
    )

    found = blocks.by_block(mixed, sorted(wanted))

    assert {
        number: [one.message for one in rows_of(part).records(PLAN)]
        for number, part in found.items()
    } == {
        number: [f"message {n}" for n, own in enumerate(numbers) if own == number]
        for number in wanted & set(numbers)
    }


async def test_a_tail_that_fails_while_it_waits_ends():
    one = tail.Tail(PLAN)
    one.begin([])
    waiting = asyncio.create_task(drain_later(one))
    await asyncio.sleep(0)
    one.fail(errors.UnavailableError("over"))

    with pytest.raises(errors.UnavailableError, match="over"):
        await waiting


async def drain_later(one: tail.Tail) -> None:
    async for _ in one.frames():
        pass
