"""What POST /ingest takes, and what it answers."""

from __future__ import annotations

import base64
import gzip
import json
import time

import ingest_door
import pytest
import zstandard
from builders import record, records

from logweir.core import block, ids, keys, moments

NOW_S = time.time()
TEXT = moments.to_text(int(NOW_S) * 10**9 + 123_456_789)
TIME_NS = int(NOW_S) * 10**9 + 123_456_789


FULL = record(
    "GET /cart\nfailed: ünïcode 😀",
    timestamp=TEXT,
    level="ERROR",
    host="web-1",
    trace_id="4BF92F3577B34DA6A3CE929D0E0E4736",
    span_id="00f067aa0ba902b7",
    metadata={"status": 500, "nested": {"list": [1, 2.50, None]}, "ü": "ß"},
    labels={"region": "eu", "team": "shop"},
)
STORED = {
    "time_ns": TIME_NS,
    "labels": {
        "host": "web-1",
        "level": "error",
        "region": "eu",
        "service": "shop",
        "team": "shop",
    },
    "message": "GET /cart\nfailed: ünïcode 😀",
    "trace": "4bf92f3577b34da6a3ce929d0e0e4736",
    "span": "00f067aa0ba902b7",
    "attributes": '{"status": 500, "nested": {"list": [1, 2.5, null]}, "\\u00fc": "\\u00df"}',
}
NEXT = record("second", timestamp=TEXT)
NEXT_STORED = {
    "time_ns": TIME_NS,
    "labels": {"level": "info", "service": "shop"},
    "message": "second",
}


@pytest.mark.parametrize("prefixed", [False, True], ids=["bare path", "with the pipeline's path"])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(json.dumps(FULL), [STORED], id="one object"),
        pytest.param(json.dumps([FULL, NEXT]), [STORED, NEXT_STORED], id="an array"),
        pytest.param(
            json.dumps(FULL) + "\n\n" + json.dumps(NEXT) + "\r\n",
            [STORED, NEXT_STORED],
            id="one a line",
        ),
        pytest.param(json.dumps([NEXT, NEXT], indent=2), [NEXT_STORED] * 2, id="a pretty array"),
        pytest.param("\n " + json.dumps(NEXT, indent=2), [NEXT_STORED], id="a pretty object"),
    ],
)
async def test_every_form_of_records_is_in_the_journal_as_it_was_sent(
    door, body, expected, prefixed
):
    prefix = f"/t/{door.tenant.id}/default" if prefixed else ""

    got = await door.post(body.encode(), path=prefix + "/ingest")

    assert got.status_code == 200, got.text
    assert got.headers["content-type"] == "application/json"
    assert got.json() == {
        "receipt": got.json()["receipt"],
        "accepted": len(expected),
        "rejected": [],
    }
    assert await ingest_door.stored(door.tenant) == expected


async def test_attributes_of_a_pretty_object_lose_only_their_line_breaks(door):
    body = json.dumps(record(metadata={"a": 1.50, "b": [1, "x  y"]}), indent=2)

    await door.post(body.replace("1.5", "1.50").encode())

    (found,) = await ingest_door.stored(door.tenant)
    assert found["attributes"] == '{"a":1.50,"b":[1,"x  y"]}'


async def test_a_record_without_timestamp_gets_the_time_of_its_arrival(door):
    before_ns = time.time_ns()

    await door.post(record())

    (found,) = await ingest_door.stored(door.tenant)
    assert before_ns - 10**6 <= found["time_ns"] <= time.time_ns() + 10**6
    assert "flags" not in found


def streamed(body: bytes) -> bytes:
    """One zstd frame that does not say how long its content is."""
    compressor = zstandard.ZstdCompressor().compressobj()
    return compressor.compress(body) + compressor.flush()


BODY = json.dumps([FULL, NEXT]).encode()
HALVES = (BODY[:100], BODY[100:])
SKIPPED = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        pytest.param("identity", BODY, id="identity"),
        pytest.param("gzip", gzip.compress(BODY), id="gzip"),
        pytest.param("X-GZIP", gzip.compress(BODY), id="gzip by its old name"),
        pytest.param("gzip", b"".join(map(gzip.compress, HALVES)), id="two gzip members"),
        pytest.param("zstd", zstandard.compress(BODY), id="zstd"),
        pytest.param("zstd", streamed(BODY), id="zstd without its size"),
        pytest.param("zstd", b"".join(map(streamed, HALVES)), id="two zstd frames"),
        pytest.param("zstd", SKIPPED + streamed(BODY), id="zstd after a skippable frame"),
    ],
)
async def test_a_compressed_body_is_stored_like_a_plain_one(door, encoding, body):
    got = await door.post(body, headers={"Content-Encoding": encoding})

    assert got.status_code == 200, got.text
    assert await ingest_door.stored(door.tenant) == [STORED, NEXT_STORED]


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json; charset=utf-8",
        "application/x-ndjson",
        "application/vnd.acme.log+json",
        "text/plain",
        "application/x-www-form-urlencoded",
        "",
    ],
)
async def test_what_senders_call_json_is_taken(door, content_type):
    got = await door.post(record(), headers={"Content-Type": content_type})

    assert got.status_code == 200, got.text


@pytest.mark.parametrize("form", ["Bearer", "bearer", "X-API-Key", "Basic"])
async def test_the_key_is_taken_in_each_of_its_places(door, form):
    credentials = base64.b64encode(f"anybody:{door.key}".encode()).decode()
    headers = {
        "Bearer": {"Authorization": f"Bearer {door.key}"},
        "bearer": {"Authorization": f"bearer   {door.key}"},
        "X-API-Key": {"X-API-Key": door.key},
        "Basic": {"Authorization": f"Basic {credentials}"},
    }[form]

    got = await door.post(record(), key="", headers=headers)

    assert got.status_code == 200, got.text


async def test_x_api_key_counts_when_a_proxy_adds_its_own_authorization(door):
    got = await door.post(record(), headers={"Authorization": "Basic cHJveHk6c2VjcmV0"})

    assert got.status_code == 200, got.text


async def test_a_key_for_all_pipelines_sends_to_each_by_its_path(make_tenant, ingest_server):
    tenant = await make_tenant(pipelines=("default", "audit"))
    key = await tenant.api_key(keys.SCOPE_INGEST)
    async with ingest_server.door(tenant, key=key) as door:
        got = await door.post(record("to audit"), path=f"/t/{tenant.id}/audit/ingest")

    assert got.status_code == 200, got.text
    audit = await ingest_door.stored(tenant, tenant.pipelines["audit"].id)
    assert [one["message"] for one in audit] == ["to audit"]
    assert await ingest_door.stored(tenant) == []


async def test_a_key_of_one_pipeline_needs_no_path_among_several(make_tenant, ingest_server):
    tenant = await make_tenant(pipelines=("default", "audit"))
    key = await tenant.api_key(keys.SCOPE_INGEST, tenant.pipelines["audit"].id)
    async with ingest_server.door(tenant, key=key) as door:
        got = await door.post(record("to audit"))

    assert got.status_code == 200, got.text
    assert len(await ingest_door.stored(tenant, tenant.pipelines["audit"].id)) == 1


async def test_a_key_for_all_pipelines_needs_no_path_where_one_is_served(tenant, ingest_server):
    key = await tenant.api_key(keys.SCOPE_INGEST)
    async with ingest_server.door(tenant, key=key) as door:
        got = await door.post(record())

    assert got.status_code == 200, got.text


async def test_the_receipt_names_the_block_and_the_request_in_it(door):
    got = await door.post(records(3))

    receipt = ids.Receipt.parse(got.json()["receipt"])
    (entry,) = await ingest_door.entries(door.tenant)
    assert receipt == ids.Receipt(entry.uuid, 0)
    assert abs(ids.time_ms(receipt.block) - time.time() * 1000) < 10_000


async def test_the_block_says_what_the_ledger_needs(door):
    body = json.dumps(records(3)).encode()

    await door.post(body, headers={"Idempotency-Key": "batch 1"})

    (entry,) = await ingest_door.entries(door.tenant)
    header = block.header(entry.payload)
    (request,) = header.requests
    assert (header.tenant, header.pipeline) == (door.tenant.id, door.tenant.pipeline)
    assert (request.records, request.expired, request.size_bytes) == (3, 0, len(body))
    assert len(request.key) == 16
    assert entry.accepted == 3


async def test_a_repeat_gets_the_receipt_of_the_first_and_stores_nothing(door):
    first = await door.post(records(2), headers={"Idempotency-Key": "k"})

    again = await door.post(records(2), headers={"Idempotency-Key": "k"})

    assert again.status_code == 200
    assert again.json() == first.json() | {"repeated": True}
    assert len(await ingest_door.stored(door.tenant)) == 2


async def test_a_repeat_may_be_compressed_another_way(door):
    body = json.dumps(records(2)).encode()
    first = await door.post(body, headers={"Idempotency-Key": "k"})

    again = await door.post(
        gzip.compress(body), headers={"Idempotency-Key": "k", "Content-Encoding": "gzip"}
    )

    assert again.json() == first.json() | {"repeated": True}


async def test_a_key_of_the_producers_form_is_in_the_block_as_numbers(door):
    producer = "01a20eea-3ff9-71d3-a016-a210fe1d50d3"

    first = await door.post(records(2), headers={"Idempotency-Key": f"p1.{producer}.7.41"})
    again = await door.post(records(2), headers={"Idempotency-Key": f"p1.{producer}.7.41"})

    (entry,) = await ingest_door.entries(door.tenant)
    (request,) = block.header(entry.payload).requests
    assert request.producer.hex() == producer.replace("-", "")
    assert (request.epoch, request.sequence) == (7, 41)
    assert again.json() == first.json() | {"repeated": True}


async def test_the_same_key_of_two_pipelines_is_two_keys(make_tenant, ingest_server):
    tenant = await make_tenant(pipelines=("default", "audit"))
    key = await tenant.api_key(keys.SCOPE_INGEST)
    async with ingest_server.door(tenant, key=key) as door:
        for name in ("default", "audit"):
            got = await door.post(
                record(name), path=f"/t/{tenant.id}/{name}/ingest", headers={"Idempotency-Key": "k"}
            )

            assert "repeated" not in got.json(), got.text


async def test_requests_without_a_key_are_never_repeats(door):
    for _ in range(2):
        got = await door.post(record())

        assert got.json()["accepted"] == 1
    assert len(await ingest_door.stored(door.tenant)) == 2


async def test_bad_records_are_named_and_their_neighbours_stored(door):
    body = [record("a"), {"message": "b"}, record("c"), record("d", metadata=[1])]

    got = await door.post(body)

    assert got.status_code == 200
    assert got.json()["accepted"] == 2
    assert [one["index"] for one in got.json()["rejected"]] == [1, 3]
    assert got.json()["rejected"][1]["reason"] == "metadata: it is no JSON object"
    assert [one["message"] for one in await ingest_door.stored(door.tenant)] == ["a", "c"]


async def test_records_older_than_the_retention_are_accepted_as_expired(door):
    old = moments.to_text(time.time_ns() - 31 * moments.NS_PER_DAY)

    got = await door.post([record("new"), record("old", timestamp=old), record("new")])

    assert got.status_code == 200
    assert (got.json()["accepted"], got.json()["expired"]) == (3, [1])
    assert [one["message"] for one in await ingest_door.stored(door.tenant)] == ["new", "new"]
    (entry,) = await ingest_door.entries(door.tenant)
    assert entry.accepted == 3
    assert block.header(entry.payload).requests[0].expired == 1


async def test_a_request_of_only_expired_records_has_a_receipt_too(door):
    got = await door.post(record(timestamp=1))

    assert got.status_code == 200
    assert (got.json()["accepted"], got.json()["expired"]) == (1, [0])
    (entry,) = await ingest_door.entries(door.tenant)
    header, found = block.decode(entry.payload)
    assert (header.accepted, header.records, found.n) == (1, 0, 0)


async def test_the_pipelines_attribute_paths_become_labels(make_tenant, ingest_server):
    tenant = await make_tenant(labels=("env", "http.status", "a-b.0x", "user.level"))
    async with ingest_server.door(tenant) as door:
        await door.post(
            record(
                metadata={
                    "env": "prod",
                    "http": {"status": 200},
                    "a-b": {"0x": "no label's name"},
                    "user": {"level": "reserved"},
                }
            )
        )

    (found,) = await ingest_door.stored(tenant)
    assert found["labels"] == {
        "env": "prod",
        "level": "info",
        "service": "shop",
        "status": "200",
    }


async def test_the_body_may_come_in_chunks(door):
    async def chunks():
        for start in range(0, len(BODY), 50):
            yield BODY[start : start + 50]

    got = await door.post(chunks())

    assert got.status_code == 200, got.text
    assert await ingest_door.stored(door.tenant) == [STORED, NEXT_STORED]


async def test_the_largest_request_is_taken(door):
    body = b"\n".join(json.dumps(one).encode() for one in records(20_000))

    got = await door.post(body)

    assert got.status_code == 200, got.text
    assert got.json()["accepted"] == 20_000
    assert len(await ingest_door.stored(door.tenant)) == 20_000
