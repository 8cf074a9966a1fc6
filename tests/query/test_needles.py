"""Needles: a filter keeps segments closed, and never hides a record."""

from __future__ import annotations

import random
import time
import uuid

import psycopg
import pytest
from builders import record
from querying import merge_some, store_rows

SEGMENTS = 24


def line(rng: random.Random, number: int) -> str:
    """A message with ids of several forms between plain words."""
    made = uuid.UUID(int=rng.getrandbits(128), version=4)
    return rng.choice(
        [
            f"GET /cart/{made} took {number} ms",
            f"user=u-{rng.randrange(10**9):09d} request_id={made.hex} done",
            f"job [batch-{rng.randrange(10**7)}.retry.{number}] of ip-10-0-{number}-7.internal",
            f'{{"order":"{made}","total":"{rng.randrange(10**6)}.50"}}',
        ]
    )


@pytest.fixture
async def messages(tenant) -> list[list[str]]:
    """The messages of each segment."""
    rng = random.Random(3)
    now_ns = time.time_ns() - 10**9
    made = [[line(rng, n) for n in range(30)] for _ in range(SEGMENTS)]
    for at, texts in enumerate(made):
        await store_rows(tenant, [record(text, timestamp=now_ns - at) for text in texts])
    return made


async def test_a_needle_opens_the_segments_that_hold_it_and_hardly_any_other(client, messages):
    rng = random.Random(4)
    opened = []
    for texts in rng.sample(messages, k=8):
        whole = next(text for text in texts if "request_id=" in text)
        needle = whole.split("request_id=")[1].split()[0]
        answer = await client.get("/api/v1/query", params={"query": f'{{}} |= "{needle}"'})
        found = answer.json()
        opened.append(found["stats"]["opened"])

        assert [one["message"] for one in found["records"]] == [whole]
        assert found["stats"]["segments"] == SEGMENTS

    assert sum(opened) <= len(opened) + 3


async def test_several_needles_must_all_be_in_a_segment(client, messages):
    found = [next(text for text in texts if "request_id=" in text) for texts in messages[:2]]
    first, second = (text.split("request_id=")[1].split()[0] for text in found)

    answer = await client.get("/api/v1/query", params={"query": f'{{}} |= "{first}" |= "{second}"'})

    assert answer.json()["records"] == []
    assert answer.json()["stats"]["opened"] <= 1


async def test_one_of_several_needles_is_enough(client, messages):
    found = [next(text for text in texts if "request_id=" in text) for texts in messages[:2]]
    first, second = (text.split("request_id=")[1].split()[0] for text in found)

    answer = await client.get("/api/v1/query", params={"query": f'{{}} |= "{first}" or "{second}"'})

    assert sorted(one["message"] for one in answer.json()["records"]) == sorted(found)


async def test_no_substring_of_a_message_is_ever_missed(client, tenant, messages):
    rng = random.Random(6)
    everything = [text for texts in messages for text in texts]
    for turn in range(60):
        text = rng.choice(everything)
        start = rng.randrange(len(text))
        needle = text[start : start + rng.randrange(1, 48)]
        answer = await client.get(
            "/api/v1/query", params={"query": f"{{}} |= `{needle}`", "limit": 5000}
        )
        if turn % 20 == 10:
            await merge_some(tenant, rng)

        assert sorted(one["message"] for one in answer.json()["records"]) == sorted(
            one for one in everything if needle in one
        ), needle


async def test_a_filter_of_an_unknown_version_is_not_asked(client, tenant, messages):
    [needle] = [t for t in messages[5] if "request_id=" in t][:1]
    async with await psycopg.AsyncConnection.connect(tenant.conninfo("k")) as connection:
        await connection.execute(
            "update segments set filter_version = 99,"
            " filter = decode(repeat('00', octet_length(filter)), 'hex')"
        )

    answer = await client.get("/api/v1/query", params={"query": f"{{}} |= `{needle}`"})

    assert [one["message"] for one in answer.json()["records"]] == [needle]
    assert answer.json()["stats"]["opened"] == SEGMENTS
