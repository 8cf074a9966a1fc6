"""The corpus of bad inputs, posted to a running ingest: taken whole, or refused in words."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

import ingest_door
import ingest_process
import msgspec
import pytest
from builders import record
from corpus import cases, plain

from logweir.core import bounds, names
from logweir.ingest import body

MEMORY_BYTES = 64 * bounds.MIB
BODIES = cases.of_target("native", "compressed")


@pytest.fixture
async def process(tenant, tmp_path):
    with ingest_process.running(tenant, tmp_path) as found:
        await found.until_ready()
        yield found


@pytest.fixture
async def door(process, tenant):
    async with ingest_door.opened(process.url, tenant) as found:
        yield found


async def post(door, data: bytes, encoding: str = "") -> tuple[int, dict[str, Any]]:
    """Status and answer; every refusal says why."""
    answer = await door.post(data, headers={"Content-Encoding": encoding})
    found = answer.json()
    assert answer.status_code in (200, 400, 413, 415), answer.text
    if answer.status_code != 200:
        assert found["error"]["code"]
        assert len(found["error"]["message"]) > 10
    assert all(len(one["reason"]) > 2 for one in found.get("rejected", ()))
    return answer.status_code, found


async def stored(door, receipt: str) -> list[dict[str, Any]]:
    """The records of the block that a receipt names; nothing has come behind it."""
    stream = names.journal_pipeline(door.tenant.id, door.tenant.pipeline) + "q"
    [(_, fields)] = await door.tenant.redis.xrevrange(stream, count=1)
    assert fields[b"u"] == uuid.UUID(receipt.partition(".")[0]).bytes
    return list(ingest_door.records_of(fields[b"b"]))


def check_equal(said: dict[str, Any], found: dict[str, Any]) -> None:
    """Assert that a record came back as it was sent."""
    assert found["message"] == said["message"]
    assert plain.value(found.get("attributes", "null")) == said.get("metadata")
    sent = {"service": said["service"], "host": said.get("host")} | (said.get("labels") or {})
    labels = dict(found["labels"])
    labels.pop("level")
    assert labels == {name: text for name, text in sent.items() if text}
    assert found.get("trace", "") == (said.get("trace_id") or "").lower().replace("-", "")


async def check_case(case: cases.Case, door) -> None:
    data = case.data
    encoding = ""
    if case.target == "compressed":
        encoding, data = cases.ENCODINGS[data[0] % 4], data[1:]
    status, answer = await post(door, data, encoding)
    expected = case.post or case.expect
    assert expected == "free" or (status == 200) == (expected == "accept"), (status, answer)
    if status != 200:
        return
    said = plain.records(body.decompress(data, encoding.encode()))
    assert len(said) == answer["accepted"] + len(answer["rejected"])
    left_out = {one["index"] for one in answer["rejected"]} | set(answer.get("expired", ()))
    good = [one for at, one in enumerate(said) if at not in left_out]
    found = await stored(door, answer["receipt"]) if good else []
    for one, other in itertools.zip_longest(good, found):
        check_equal(one, other)


async def test_every_case_is_taken_whole_or_refused_in_words_in_little_memory(process, door):
    await post(door, msgspec.json.encode([record("x" * 500_000)] * 4))
    process.forget_peak()
    before_bytes = process.memory_bytes()
    for case in BODIES:
        try:
            await check_case(case, door)
        except Exception as problem:
            raise AssertionError(case.name) from problem
        grown_bytes = process.peak_bytes() - before_bytes
        assert grown_bytes <= MEMORY_BYTES, f"{case.name}: {grown_bytes >> 20} MiB"

    status, _ = await post(door, msgspec.json.encode(record("still there")))
    assert status == 200
    assert process.popen.poll() is None
    assert len(BODIES) > 450


async def test_texts_come_back_as_they_were_sent_in_every_field(process, door):
    for text in cases.texts():
        sent = record(
            text,
            host="h",
            labels={"a": text[:60]},
            metadata={text: text, "list": [text], "nested": {"x": {text: None}}},
        )
        status, answer = await post(door, msgspec.json.encode(sent))
        assert status == 200, (text, answer)
        [found] = await stored(door, answer["receipt"])
        check_equal(plain.value(msgspec.json.encode(sent).decode()), found)

        status, _ = await post(door, msgspec.json.encode(record("m", service=text, level=text)))
        assert status == (200 if 0 < len(text.encode()) <= bounds.MAX_LABEL_VALUE_BYTES else 400)
        named = record("m", trace_id=text, labels={text: "x"}, timestamp=text)
        status, _ = await post(door, msgspec.json.encode(named))
        assert status == 400
