"""What becomes of a request, as its receipt tells."""

from __future__ import annotations

import time

import httpx2
import msgspec
import pytest
import world
from builders import delivered, encode, records, request
from draining import collecting, drained
from tailing import append_payload

from logweir.core import block, ids, keys, settle
from logweir.query import receipts

DAY_MS = 86_400_000


def receipt_of(payload: bytes, index: int = 0) -> str:
    return str(ids.Receipt(block.header(payload).uuid, index))


async def state_of(client, payload: bytes, index: int = 0) -> str:
    answer = await client.get(f"/api/v1/receipts/{receipt_of(payload, index)}")
    assert answer.status_code == 200, answer.text
    assert answer.json()["receipt"] == receipt_of(payload, index)
    return answer.json()["state"]


async def store(tenant, *payloads: bytes) -> None:
    await tenant.store().commit(
        tenant.pipeline,
        [delivered(payload) for payload in payloads],
        now_ns=time.time_ns(),
        retention_days=30,
    )


async def test_a_request_is_buffered_then_stored(client, tenant):
    payload = encode(tenant.id, tenant.pipeline, [request(records(2)), request(records(3))])
    await append_payload(tenant.appender(), tenant.pipeline, payload)

    before = [await state_of(client, payload, index) for index in (0, 1)]
    async with collecting(tenant.collector_binding()):
        await drained(tenant)
    after = (await client.get(f"/api/v1/receipts/{receipt_of(payload, 1)}")).json()

    assert before == ["buffered", "buffered"]
    assert after == {
        "receipt": receipt_of(payload, 1),
        "state": "stored",
        "counts": {"stored": 3, "quarantined": 0, "expired": 0, "repeated": 0},
    }


async def test_a_repeat_is_called_a_repeat(client, tenant):
    first, again = (
        encode(tenant.id, tenant.pipeline, [request(records(2), key="k")]) for _ in range(2)
    )
    await store(tenant, first)
    await store(tenant, again)

    found = (await client.get(f"/api/v1/receipts/{receipt_of(again)}")).json()

    assert await state_of(client, first) == "stored"
    assert (found["state"], found["counts"]["repeated"]) == ("repeated", 2)


async def test_a_repeat_of_what_is_in_quarantine_is_not_called_stored(client, tenant):
    first, again = (
        encode(tenant.id, tenant.pipeline, [request(records(2), key="k")]) for _ in range(2)
    )
    refused = msgspec.structs.replace(delivered(first), records=None, problem="refused")
    await tenant.store().commit(
        tenant.pipeline, [refused], now_ns=time.time_ns(), retention_days=30
    )
    await store(tenant, again)

    assert await state_of(client, first) == "quarantined"
    assert await state_of(client, again) == "repeated"


async def test_a_key_that_came_with_another_body_is_quarantined(client, tenant):
    first = encode(tenant.id, tenant.pipeline, [request(records(2), key="k")])
    other = encode(tenant.id, tenant.pipeline, [request(records(3), key="k")])
    await store(tenant, first, other)

    assert await state_of(client, other) == "quarantined"


async def test_all_requests_of_a_block_that_could_not_be_read_are_quarantined(client, tenant):
    payload = encode(tenant.id, tenant.pipeline, [request(records(2)), request(records(3))])
    damaged = settle.Delivery("1-0", block.header(payload).uuid, 5, b"?", problem="damaged")
    await tenant.store().commit(
        tenant.pipeline, [damaged], now_ns=time.time_ns(), retention_days=30
    )

    assert [await state_of(client, payload, index) for index in (0, 1)] == ["quarantined"] * 2


async def test_a_request_whose_records_were_all_too_old_is_expired(client, tenant):
    old = records(2, timestamp=time.time_ns() - 40 * DAY_MS * 10**6)
    payload = encode(tenant.id, tenant.pipeline, [request(old), request(records(1))])
    await store(tenant, payload)

    assert await state_of(client, payload, 0) == "expired"
    assert await state_of(client, payload, 1) == "stored"


async def test_nobody_knows_a_request_that_never_was(client, tenant):
    payload = encode(tenant.id, tenant.pipeline, [request(records(1))])
    await store(tenant, payload)

    assert await state_of(client, payload, 1) == "unknown"
    assert await state_of(client, encode(tenant.id, tenant.pipeline, [])) == "unknown"


async def test_an_ingest_key_may_ask_for_a_receipt(client, tenant, role):
    payload = encode(tenant.id, tenant.pipeline, [request(records(1))])
    await store(tenant, payload)
    headers = {"x-api-key": await tenant.api_key(keys.SCOPE_INGEST)}

    async with httpx2.AsyncClient(base_url=role.url, headers=headers) as ingest:
        assert await state_of(ingest, payload) == "stored"


async def test_another_tenants_receipt_is_unknown(client, tenant, make_tenant, client_of):
    stored, buffered = (encode(tenant.id, tenant.pipeline, [request(records(1))]) for _ in range(2))
    await store(tenant, stored)
    await append_payload(tenant.appender(), tenant.pipeline, buffered)
    other = await client_of(await (await make_tenant()).api_key(keys.SCOPE_QUERY))

    assert [await state_of(other, one) for one in (stored, buffered)] == ["unknown"] * 2


async def test_a_key_of_another_pipeline_knows_nothing_of_a_receipt(make_tenant, client_of):
    tenant = await make_tenant(pipelines=["default", "other"])
    stored, buffered = (encode(tenant.id, tenant.pipeline, [request(records(1))]) for _ in range(2))
    await store(tenant, stored)
    await append_payload(tenant.appender(), tenant.pipeline, buffered)
    other, own = [
        await client_of(await tenant.api_key(keys.SCOPE_QUERY, tenant.pipelines[name].id))
        for name in ("other", "default")
    ]

    assert [await state_of(other, one) for one in (stored, buffered)] == ["unknown"] * 2
    assert [await state_of(own, one) for one in (stored, buffered)] == ["stored", "buffered"]


async def test_a_receipt_is_found_among_many_blocks_of_its_time(client, tenant):
    payloads = [encode(tenant.id, tenant.pipeline, [request(records(1))]) for _ in range(40)]
    appender = tenant.appender()
    for payload in payloads:
        await append_payload(appender, tenant.pipeline, payload)

    assert {await state_of(client, payload) for payload in payloads} == {"buffered"}


async def test_a_block_that_was_appended_long_after_it_was_made_is_found(client, tenant):
    now_ms = time.time_ns() // 10**6
    for age_ms in (-55_000, 8_000, 50_000):
        payload = encode(
            tenant.id,
            tenant.pipeline,
            [request(records(1))],
            uuid=world.new_uuid(now_ms - age_ms),
        )
        await append_payload(tenant.appender(), tenant.pipeline, payload)

        assert await state_of(client, payload) == "buffered"


async def test_too_large_a_journal_to_look_through_is_said(client, tenant, monkeypatch):
    monkeypatch.setattr("logweir.backends.journal_tail.RECEIPT_BYTES", 100)
    payloads = [encode(tenant.id, tenant.pipeline, [request(records(1))]) for _ in range(20)]
    for payload in payloads:
        await append_payload(tenant.appender(), tenant.pipeline, payload)

    answer = await client.get(f"/api/v1/receipts/{receipt_of(payloads[-1])}")

    assert answer.status_code == 503
    assert answer.headers["retry-after"]


async def test_a_block_that_is_stored_between_two_looks_is_stored(tenant):
    payload = encode(tenant.id, tenant.pipeline, [request(records(2))])

    async def moves_on() -> bool:
        await tenant.store().commit(
            tenant.pipeline, [delivered(payload)], now_ns=time.time_ns(), retention_days=30
        )
        return False

    found = await receipts.look_up(
        tenant.reader(), moves_on, None, ids.Receipt(block.header(payload).uuid, 0)
    )

    assert found.state == "stored"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("x", id="no id"),
        pytest.param("018f0000-0000-7000-8000-000000000000", id="no index"),
        pytest.param("018f0000-0000-4000-8000-000000000000.0", id="another kind of UUID"),
        pytest.param("018f0000-0000-7000-8000-000000000000.-1", id="a negative index"),
        pytest.param("018f0000-0000-7000-8000-000000000000.٣", id="a foreign digit"),
    ],
)
async def test_what_is_no_receipt_is_refused(empty_client, text):
    answer = await empty_client.get(f"/api/v1/receipts/{text}")

    assert answer.status_code == 400
    assert "receipt" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        pytest.param(settle.Outcome(stored=1, quarantined=1), "quarantined", id="some bad"),
        pytest.param(settle.Outcome(stored=1, expired=1), "stored", id="some too old"),
        pytest.param(settle.Outcome(expired=1, repeated=1), "repeated", id="known and too old"),
        pytest.param(settle.Outcome(), "stored", id="an empty request"),
    ],
)
def test_a_state_is_the_worst_news(outcome, word):
    assert receipts.state(outcome) == word
