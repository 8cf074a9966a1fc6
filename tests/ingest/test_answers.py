"""What POST /ingest refuses, by which answer; nothing of it reaches the journal."""

from __future__ import annotations

import asyncio
import gzip
import json
import time

import ingest_door
import msgspec
import pytest
import zstandard
from builders import record, records

from logweir.backends import provision
from logweir.core import bounds, keys
from logweir.core.names import PipelineId, TenantId
from logweir.ingest.app import Ingest


def check_refused(got, status, code):
    """The answer is an error of the one shape that all have."""
    assert got.status_code == status, got.text
    error = got.json()["error"]
    assert error.keys() == {"code", "message", "hint"}
    assert error["code"] == code
    assert error["message"].endswith(".")


async def check_empty(door):
    assert await ingest_door.entries(door.tenant) == []


def changed(key: str, **fields) -> keys.ApiKey:
    return msgspec.structs.replace(keys.decode(key).key, **fields)


@pytest.fixture
async def two_doors(make_tenant, ingest_server):
    """A door, and another tenant that the same process serves."""
    tenant, other = await make_tenant(), await make_tenant()
    async with ingest_server.door(tenant, other) as made:
        yield made, other


WRONG_KEYS = {
    "no key": lambda door, other: ("/ingest", ""),
    "no key at all": lambda door, other: ("/ingest", "secret"),
    "a forged key": lambda door, other: (
        "/ingest",
        keys.encode(changed(door.key), secret=b"x" * 32),
    ),
    "a key that names another tenant": lambda door, other: (
        "/ingest",
        keys.encode(
            changed(door.key, tenant=other.id),
            keys.ingest_secret(door.tenant.roots.sign, door.tenant.id, 1),
        ),
    ),
    "a key that names no tenant": lambda door, other: (
        "/ingest",
        door.tenant.key_text(changed(door.key, tenant=TenantId("nobody"))),
    ),
    "an unknown signing revision": lambda door, other: (
        "/ingest",
        door.tenant.key_text(changed(door.key, revision=9)),
    ),
    "an expired key": lambda door, other: (
        "/ingest",
        door.tenant.key_text(changed(door.key, expires_at_s=int(time.time()) - 1)),
    ),
    "an access key": lambda door, other: (
        "/ingest",
        door.tenant.key_text(changed(door.key, scopes=keys.SCOPE_QUERY)),
    ),
    "an access key signed by the ingest secret": lambda door, other: (
        "/ingest",
        keys.encode(
            changed(door.key, scopes=keys.SCOPE_ADMIN),
            keys.ingest_secret(door.tenant.roots.sign, door.tenant.id, 1),
        ),
    ),
    "another tenant's address": lambda door, other: (f"/t/{other.id}/default/ingest", door.key),
    "another tenant's address and a key for all pipelines": lambda door, other: (
        f"/t/{other.id}/default/ingest",
        door.tenant.key_text(changed(door.key, pipeline=PipelineId(0))),
    ),
    "an unknown tenant": lambda door, other: ("/t/nobody/default/ingest", door.key),
    "an unknown pipeline": lambda door, other: (f"/t/{door.tenant.id}/none/ingest", door.key),
    "a pipeline that the key is not for": lambda door, other: (
        "/ingest",
        door.tenant.key_text(changed(door.key, pipeline=PipelineId(999_999))),
    ),
    "an address cut short": lambda door, other: (f"/t/{door.tenant.id}", door.key),
}


@pytest.mark.parametrize("case", WRONG_KEYS)
async def test_every_wrong_key_or_address_gets_the_same_401(two_doors, case):
    door, other = two_doors
    path, key = WRONG_KEYS[case](door, other)

    got = await door.post(record(), path=path, key=key)

    nothing = await door.http.post("/ingest")
    check_refused(got, 401, "unauthorized")
    assert (got.content, got.headers) == (nothing.content, nothing.headers)
    assert got.headers["www-authenticate"] == "Bearer"
    await check_empty(door)
    assert await ingest_door.entries(other) == []


async def test_a_typo_in_a_key_gets_401_and_is_called_a_typo(two_doors):
    door, _ = two_doors
    mistyped = door.key[:-9] + ("b" if door.key[-9] == "a" else "a") + door.key[-8:]

    got = await door.post(record(), key=mistyped)

    check_refused(got, 401, "unauthorized")
    assert "mistyped" in got.json()["error"]["message"]
    await check_empty(door)


async def test_a_revoked_key_gets_401_and_its_neighbour_does_not(tenant, ingest_server):
    revoked = await tenant.api_key(keys.SCOPE_INGEST, tenant.pipeline)
    key_id = keys.decode(revoked).key.key_id
    await provision.publish_revocations(tenant.redis, tenant.id, [key_id, 7])

    async with ingest_server.door(tenant) as door:
        got = await door.post(record(), key=revoked)
        good = await door.post(record())

    check_refused(got, 401, "unauthorized")
    assert good.status_code == 200


async def test_a_key_for_all_pipelines_is_told_to_name_one(make_tenant, ingest_server):
    tenant = await make_tenant(pipelines=("default", "audit"))
    key = await tenant.api_key(keys.SCOPE_INGEST)
    async with ingest_server.door(tenant, key=key) as door:
        got = await door.post(record())

    check_refused(got, 400, "bad_request")
    assert f"/t/{tenant.id}/PIPELINE/ingest" in got.json()["error"]["hint"]


@pytest.mark.parametrize("state", ["readonly", "deleting"])
async def test_a_closed_tenant_gets_403(door, state):
    tenant = door.tenant
    row = msgspec.structs.replace(tenant.row, state=state)
    await provision.provision_journal(
        tenant.redis, row, list(tenant.pipelines.values()), tenant.roots, tenant.limits
    )

    got = await door.post(record())

    check_refused(got, 403, "forbidden")
    assert state in got.json()["error"]["message"]
    await check_empty(door)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(b"", "empty", id="nothing"),
        pytest.param(b" \n ", "empty", id="only blanks"),
        pytest.param(b"hello", "neither", id="plain text"),
        pytest.param(b'"text"', "neither", id="a JSON string"),
        pytest.param(b"[]", "no record", id="an empty array"),
        pytest.param(b'[{"message": 1},', "truncated", id="an array that ends early"),
        pytest.param(b'[{"message": NaN}]', "byte 13", id="NaN in an array, with its place"),
        pytest.param(b"[" * 100_000, "nested", id="an array too deep to parse"),
    ],
)
async def test_what_is_no_json_gets_400_with_the_reason(door, body, reason):
    got = await door.post(body)

    check_refused(got, 400, "bad_request")
    assert reason in got.json()["error"]["message"]
    await check_empty(door)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"message": "no level, no service"}, id="one"),
        pytest.param([{"a": 1}, record(level=1)], id="several"),
    ],
)
async def test_a_request_of_only_bad_records_gets_400_that_names_each(door, body):
    got = await door.post(body)

    check_refused(got, 400, "all_rejected")
    count = len(body) if isinstance(body, list) else 1
    assert [one["index"] for one in got.json()["rejected"]] == list(range(count))
    assert all(one["reason"] for one in got.json()["rejected"])
    await check_empty(door)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        pytest.param("gzip", b"no gzip", id="no gzip"),
        pytest.param("gzip", gzip.compress(b"{}" * 99)[:-9], id="a gzip cut off"),
        pytest.param("gzip", gzip.compress(b"{}") + b"more", id="a gzip with rubbish after it"),
        pytest.param("zstd", b"no zstd", id="no zstd"),
        pytest.param("zstd", b"\x28", id="one byte of zstd"),
        pytest.param("zstd", zstandard.compress(b"{}" * 99)[:-3], id="a zstd cut off"),
    ],
)
async def test_a_damaged_body_gets_400(door, encoding, body):
    got = await door.post(body, headers={"Content-Encoding": encoding})

    check_refused(got, 400, "bad_request")
    await check_empty(door)


@pytest.mark.parametrize("key", ["x" * 257, "ünicode", "two  blanks"])
async def test_a_bad_idempotency_key_gets_400(door, key):
    got = await door.post(record(), headers=[("Idempotency-Key", key.encode())])

    check_refused(got, 400, "bad_request")
    await check_empty(door)


async def test_records_of_too_many_old_days_get_400(door):
    now_s = int(time.time())
    old = [record(timestamp=now_s - day * 86_400) for day in range(3, 12)]

    got = await door.post(old)
    fewer = await door.post(old[1:])

    check_refused(got, 400, "bad_request")
    assert "9 different days" in got.json()["error"]["message"]
    assert fewer.status_code == 200, fewer.text


async def test_an_unknown_path_gets_404(door):
    got = await door.post(record(), path=f"/t/{door.tenant.id}/default/ingestion")

    check_refused(got, 404, "not_found")


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS", "DELETE"])
async def test_another_method_gets_405_with_the_right_one(door, method):
    got = await door.http.request(method, "/ingest", headers={"X-API-Key": door.key})

    check_refused(got, 405, "method_not_allowed")
    assert got.headers["allow"] == "POST"


async def test_head_is_answered_without_a_body(door):
    got = await door.http.head("/ingest", headers={"X-API-Key": door.key})

    assert (got.status_code, got.content) == (405, b"")


def head(door, *lines: str) -> bytes:
    sent = ["POST /ingest HTTP/1.1", "Host: here", f"X-API-Key: {door.key}", *lines, "", ""]
    return "\r\n".join(sent).encode()


async def test_a_sender_who_stalls_gets_408_and_its_connection_ends(tenant):
    async with (
        ingest_door.ingest(tenant, Ingest(body_timeout_s=0.1)) as door,
        ingest_door.wire(door) as wire,
    ):
        await wire.send(head(door, "Content-Length: 100") + b'{"message"')
        status, headers, body = await wire.answer()

        assert status == 408
        assert json.loads(body)["error"]["code"] == "request_timeout"
        assert headers["connection"] == "close"
        assert await wire.is_closed()
        await check_empty(door)


async def test_a_sender_who_drips_gets_408_all_the_same(tenant):
    async with (
        ingest_door.ingest(tenant, Ingest(body_timeout_s=0.3)) as door,
        ingest_door.wire(door) as wire,
    ):
        await wire.send(head(door, "Transfer-Encoding: chunked"))
        answer = asyncio.create_task(wire.answer())
        while not answer.done():
            await wire.send(b"1\r\n \r\n")
            await asyncio.sleep(0.02)  # the sender's pace

        assert (await answer)[0] == 408


async def test_an_announced_length_over_the_bound_gets_413_before_the_body_is_sent(door):
    length = bounds.MAX_BODY_BYTES + 1
    async with ingest_door.wire(door) as wire:
        await wire.send(head(door, f"Content-Length: {length}", "Expect: 100-continue"))

        status, _, body = await wire.answer()

        assert status == 413
        assert str(length) in json.loads(body)["error"]["message"]
    await check_empty(door)


async def test_a_sender_who_asks_first_is_told_to_go_on(door):
    body = json.dumps(record()).encode()
    async with ingest_door.wire(door) as wire:
        await wire.send(head(door, f"Content-Length: {len(body)}", "Expect: 100-continue"))
        first = await wire.answer()
        await wire.send(body)
        last = await wire.answer()

    assert (first[0], last[0]) == (100, 200)


async def test_chunks_over_the_bound_get_413_and_the_connection_goes_on(door):
    piece = b" " * 65_536
    chunk = b"%x\r\n%b\r\n" % (len(piece), piece)
    body = json.dumps(record()).encode()
    async with ingest_door.wire(door) as wire:
        await wire.send(head(door, "Transfer-Encoding: chunked"))
        for _ in range(bounds.MAX_BODY_BYTES // len(piece) + 20):
            await wire.send(chunk)
        await wire.send(b"0\r\n\r\n")
        refused = await wire.answer()
        await wire.send(head(door, f"Content-Length: {len(body)}") + body)
        after = await wire.answer()

    assert (refused[0], json.loads(refused[2])["error"]["code"]) == (413, "too_large")
    assert after[0] == 200
    assert len(await ingest_door.entries(door.tenant)) == 1


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param("Content-Length: 5\r\nContent-Length: 6\r\n\r\n[1,2]", id="two lengths"),
        pytest.param(
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="a length and chunks",
        ),
        pytest.param("Content-Length: five\r\n\r\n", id="a length in words"),
        pytest.param("Transfer-Encoding: chunked\r\n\r\nxyz\r\n", id="a chunk of no size"),
    ],
)
async def test_a_body_whose_end_is_in_doubt_ends_the_connection_and_stores_nothing(door, request_):
    async with ingest_door.wire(door) as wire:
        await wire.send(head(door)[:-2] + request_.encode())
        status, _, _ = await wire.answer()

        assert status == 400
        assert await wire.is_closed()
    await check_empty(door)


BOMB = b" " * (bounds.MAX_DECODED_BYTES + 1)
UNSIZED = zstandard.ZstdCompressor(write_content_size=False)
EMPTY_FRAME = zstandard.compress(b"")


@pytest.mark.parametrize(
    ("encoding", "body", "status", "code"),
    [
        pytest.param("gzip", gzip.compress(BOMB), 413, "too_large", id="gzip"),
        pytest.param("gzip", gzip.compress(BOMB) * 9, 413, "too_large", id="gzip, again and again"),
        pytest.param("zstd", zstandard.compress(BOMB), 413, "too_large", id="zstd"),
        pytest.param("zstd", UNSIZED.compress(BOMB), 413, "too_large", id="zstd without its size"),
        pytest.param(
            "gzip", gzip.compress(b"") * 9999, 400, "bad_request", id="empty gzip members"
        ),
        pytest.param("zstd", EMPTY_FRAME * 9999, 400, "bad_request", id="empty zstd frames"),
    ],
)
async def test_a_bomb_is_stopped(door, encoding, body, status, code):
    got = await door.post(body, headers={"Content-Encoding": encoding})

    check_refused(got, status, code)
    await check_empty(door)


@pytest.mark.parametrize("form", ["lines", "array"])
async def test_too_many_records_get_413(door, form):
    lines = [json.dumps(record("m"))] * (bounds.MAX_RECORDS + 1)
    body = "\n".join(lines) if form == "lines" else f"[{','.join(lines)}]"

    got = await door.post(body.encode())

    check_refused(got, 413, "too_large")
    await check_empty(door)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([("Content-Type", "application/xml")], id="content type"),
        pytest.param([("Content-Type", "multipart/form-data; boundary=x")], id="a form"),
        pytest.param([("Content-Encoding", "br")], id="content encoding"),
        pytest.param([("Content-Encoding", "gzip, zstd")], id="two encodings"),
        pytest.param([("Content-Encoding", "gzip")] * 2, id="two headers of encoding"),
    ],
)
async def test_another_type_or_encoding_gets_415(door, headers):
    got = await door.post(gzip.compress(b"{}"), headers=headers)

    check_refused(got, 415, "unsupported_media_type")
    await check_empty(door)


async def test_two_api_keys_are_no_key(door):
    got = await door.post(record(), headers=[("X-API-Key", "other")])

    check_refused(got, 401, "unauthorized")


async def test_two_idempotency_keys_are_one_that_names_both(door):
    twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    first = await door.post(record(), headers=twice)

    again = await door.post(record(), headers=[("Idempotency-Key", "a, b")])
    other = await door.post(record(), headers=[("Idempotency-Key", "b")])

    assert again.json() == first.json() | {"repeated": True}
    assert "repeated" not in other.json()


async def test_a_key_with_another_body_gets_422(door):
    first = await door.post(record("one"), headers={"Idempotency-Key": "k"})

    got = await door.post(record("two"), headers={"Idempotency-Key": "k"})

    assert first.status_code == 200
    check_refused(got, 422, "key_conflict")
    assert [one["message"] for one in await ingest_door.stored(door.tenant)] == ["one"]


def limits(**fields) -> provision.Limits:
    return provision.Limits(**({"buffer_bytes": 1 << 30} | fields))


@pytest.mark.parametrize(
    "rate",
    [
        pytest.param({"records_per_second": 10}, id="records"),
        pytest.param({"bytes_per_second": 640}, id="bytes"),
    ],
)
async def test_a_tenant_in_debt_gets_429_and_when_to_come_back(make_tenant, ingest_server, rate):
    tenant = await make_tenant(limits=limits(**rate))
    async with ingest_server.door(tenant) as door:
        first = await door.post(b"\n".join([json.dumps(record("m")).encode()] * 100))

        got = await door.post(record("late"))

    assert first.status_code == 200
    check_refused(got, 429, "over_limit")
    assert "rate" in got.json()["error"]["message"]
    assert 5 <= int(got.headers["retry-after"]) <= 9
    assert len(await ingest_door.stored(tenant)) == 100


async def test_while_in_debt_requests_are_refused_before_they_are_read(make_tenant, ingest_server):
    tenant = await make_tenant(limits=limits(records_per_second=1))
    async with ingest_server.door(tenant) as door:
        await door.post(records(100))
        await door.post(record())
        async with ingest_door.wire(door) as wire:
            await wire.send(head(door, "Content-Length: 100"))

            status, headers, _ = await wire.answer()

    assert status == 429
    assert int(headers["retry-after"]) > 90


async def test_a_refusal_costs_a_fraction_of_what_it_refuses(make_tenant):
    tenant = await make_tenant(limits=limits(records_per_second=1))
    app = Ingest(monotonic_s=lambda: 0.0)
    body = gzip.compress(json.dumps(records(20_000)).encode())
    zipped = {"content-encoding": "gzip"}
    async with ingest_door.ingest(tenant, app) as door:

        async def cost_s(status: int, times: int) -> float:
            begun_s = time.process_time()
            for _ in range(times):
                assert (await door.post(body, headers=zipped)).status_code == status
            return (time.process_time() - begun_s) / times

        taken_s = await cost_s(200, 1)
        await cost_s(429, 1)  # the journal says it, and it is remembered
        refused_s = await cost_s(429, 20)

    assert refused_s < taken_s / 5


async def test_the_time_to_wait_gets_shorter_while_it_passes(make_tenant, monkeypatch):
    monkeypatch.setattr("logweir.ingest.app.DEBT_REMEMBERED_S", 60.0)
    now_s = 0.0
    tenant = await make_tenant(limits=limits(records_per_second=1))
    async with ingest_door.ingest(tenant, Ingest(monotonic_s=lambda: now_s)) as door:
        await door.post(records(100))
        first = await door.post(record())
        now_s += 10
        second = await door.post(record())

    waits_s = [int(one.headers["retry-after"]) for one in (first, second)]
    assert waits_s[1] == waits_s[0] - 10
    assert f"{waits_s[0]} s" in first.json()["error"]["message"]


async def test_over_what_may_be_stored_gets_429_with_the_way_out(make_tenant):
    tenant = await make_tenant()
    await provision.set_stored(tenant.redis, tenant.id, is_over=True)
    async with ingest_door.ingest(tenant, Ingest()) as door:
        got = await door.post(record())

    check_refused(got, 429, "over_limit")
    assert "quotas.storedBytes" in got.json()["error"]["hint"]
    assert got.headers["retry-after"] == "32"


async def test_a_full_buffer_gets_429_until_there_is_room(make_tenant):
    now_s = time.time()
    tenant = await make_tenant(limits=limits(buffer_bytes=500))
    app = Ingest(monotonic_s=lambda: now_s)
    async with ingest_door.ingest(tenant, app) as door:
        while (got := await door.post(record())).status_code == 200:
            pass
        filled = await ingest_door.entries(tenant)
        now_s += 0.1
        still = await door.post(record())
        await tenant.journal_reader().ack(tenant.pipeline, filled)
        now_s += 0.1
        after = await door.post(record())

    check_refused(got, 429, "over_limit")
    assert "buffer" in got.json()["error"]["message"]
    assert got.headers["retry-after"] == "2"
    assert (still.status_code, after.status_code) == (429, 200)
    assert sum(len(entry.payload) for entry in filled) <= 500


async def test_another_tenants_debt_is_not_ones_own(make_tenant, ingest_server):
    poor = await make_tenant(limits=limits(records_per_second=1))
    rich = await make_tenant()
    async with ingest_server.door(poor, rich) as door:
        await door.post(records(100))
        refused = await door.post(record())
        key = await rich.api_key(keys.SCOPE_INGEST, rich.pipeline)
        got = await door.post(record(), key=key)

    assert (refused.status_code, got.status_code) == (429, 200)
