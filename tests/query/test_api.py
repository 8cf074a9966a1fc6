"""The form of the read API: parameters in, records and errors out."""

from __future__ import annotations

import base64
import json
import time

import pytest
from builders import record, records
from querying import HOUR_NS, store_rows

from logweir.core import keys
from logweir.query import api, params

NOW = "2026-02-03T04:05:06Z"


async def problem(answer) -> dict:
    found = answer.json()
    assert found.keys() == {"error"}
    assert found["error"].keys() == {"code", "message", "hint"}
    return found["error"]


# ---- answers ---------------------------------------------------------------------------------


async def test_a_query_answers_the_newest_records_of_the_last_hour_with_their_pipeline(
    client, tenant
):
    now_ns = time.time_ns()
    await store_rows(
        tenant,
        [
            record("old", timestamp=now_ns - HOUR_NS - 10**9),
            record("less old", timestamp=now_ns - HOUR_NS + 60 * 10**9),
            record("new", host="h1", timestamp=now_ns - 10**9),
        ],
    )

    answer = await client.get("/api/v1/query")

    found = answer.json()
    assert answer.headers["content-type"] == "application/json"
    assert [one["message"] for one in found["records"]] == ["new", "less old"]
    assert found["records"][0]["labels"] == {
        "host": "h1",
        "level": "info",
        "pipeline": "default",
        "service": "shop",
    }
    assert (found["stopped"], found["cursor"]) == (None, None)


async def test_a_record_comes_with_all_that_was_sent(client, tenant):
    attributes = '{"b": [1, 2.50, null],\n "a": {"ü": "\\u00fc"}}'
    sent = {
        "message": "two\nlines",
        "level": "WARNING",
        "service": "shop",
        "timestamp": "2100-01-01T00:00:00Z",
        "trace_id": "AB" * 16,
        "span_id": "cd" * 8,
        "metadata": json.loads(attributes),
        "labels": {"team": "x"},
    }
    await tenant.store_records([sent])

    [found] = (await client.get("/api/v1/query", params={"end": "now+10s"})).json()["records"]

    time_ns, block, index = found["id"].split("-")
    assert found["timestamp"] == time_ns
    assert (len(block), index) == (16, "0")
    assert found["message"] == "two\nlines"
    assert found["labels"] == {
        "level": "warn",
        "pipeline": "default",
        "service": "shop",
        "team": "x",
    }
    assert (found["trace_id"], found["span_id"]) == ("ab" * 16, "cd" * 8)
    assert found["attributes"] == sent["metadata"]
    assert found["flags"] == 2
    assert "2100" in json.dumps(found["extra"])


@pytest.mark.parametrize(
    "request_of",
    [
        pytest.param(lambda asked: {"params": asked}, id="in the URL"),
        pytest.param(lambda asked: {"data": asked}, id="as a form"),
        pytest.param(lambda asked: {"json": asked}, id="as JSON"),
        pytest.param(
            lambda asked: {
                "params": {"query": asked.pop("query")},
                "json": asked,
            },
            id="in the URL and as JSON",
        ),
    ],
)
async def test_parameters_are_taken(client, tenant, request_of):
    await tenant.store_records(records(9))
    asked = {"query": '{service="shop"} |= "message 7"', "start": "-5m", "limit": 1}

    answer = await client.post("/api/v1/query", **request_of(asked))

    assert [one["message"] for one in answer.json()["records"]] == ["message 7"]


async def test_ndjson_has_one_record_a_line_and_the_end_as_the_last(client, tenant):
    await tenant.store_records(
        [record("two\nlines", metadata={"a": "b\nc"}), record("x"), record("y")]
    )

    answer = await client.get("/api/v1/query", params={"format": "ndjson", "limit": 2})

    lines = [json.loads(line) for line in answer.text.removesuffix("\n").split("\n")]
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [one.keys() >= {"id", "message"} for one in lines[:-1]] == [True, True]
    assert lines[-1]["end"].keys() == {"cursor", "stopped", "stats"}
    assert lines[-1]["end"]["stopped"] == "limit"
    assert lines[-1]["end"]["cursor"]


async def test_start_is_inclusive_and_end_exclusive(client, tenant):
    at_ns = time.time_ns() - 10**9
    await store_rows(tenant, [record(str(n), timestamp=at_ns + n) for n in range(5)])

    answer = await client.get("/api/v1/query", params={"start": at_ns + 1, "end": at_ns + 3})

    assert [one["message"] for one in answer.json()["records"]] == ["2", "1"]


async def test_a_page_has_a_hundred_records_when_nothing_else_is_asked_for(client, tenant):
    await tenant.store_records(records(101))

    found = (await client.get("/api/v1/query")).json()

    assert len(found["records"]) == 100
    assert found["stopped"] == "limit"


async def test_a_page_of_exactly_the_limit_that_is_the_last_has_no_cursor(client, tenant):
    await tenant.store_records(records(7))

    found = (await client.get("/api/v1/query", params={"limit": 7})).json()

    assert (len(found["records"]), found["cursor"], found["stopped"]) == (7, None, None)


async def test_statistics_say_what_was_read(client, tenant):
    await tenant.store_records(records(50))
    await tenant.store_records(records(50, service="cart"))

    stats = (await client.get("/api/v1/query", params={"query": '{service="cart"}'})).json()[
        "stats"
    ]

    assert stats.keys() == {"scanned_bytes", "segments", "opened", "elapsed_ms"}
    assert (stats["segments"], stats["opened"]) == (2, 1)
    assert stats["scanned_bytes"] > 50 * len("message 1")


async def test_an_answer_that_grows_too_large_ends_early_and_goes_on(client, tenant, monkeypatch):
    monkeypatch.setattr("logweir.query.search.MAX_ANSWER_BYTES", 3000)
    await tenant.store_records([record(f"{n}" + "x" * 800) for n in range(7)])

    found, cursor, stopped = [], "", []
    while cursor is not None:
        asked = {"cursor": cursor} if cursor else {}
        page = (await client.get("/api/v1/query", params=asked)).json()
        found += [one["message"][0] for one in page["records"]]
        stopped.append(page["stopped"])
        cursor = page["cursor"]

    assert found == list("6543210")
    assert set(stopped[:-1]) == {"bytes"}
    assert stopped[-1] is None


async def test_records_past_their_pipelines_retention_are_hidden(make_tenant, client_of):
    tenant = await make_tenant(retention_days=30)
    now_ns = time.time_ns()
    day_ns = 24 * HOUR_NS
    await store_rows(tenant, [record(f"{d} days", timestamp=now_ns - d * day_ns) for d in (1, 8)])
    await tenant.control.ensure_pipeline(tenant.id, "default", 7, {})
    client = await client_of(await tenant.api_key(keys.SCOPE_QUERY), tenant)
    asked = {"start": "-30d"}

    found = (await client.get("/api/v1/query", params=asked)).json()["records"]
    counted = (await client.get("/api/v1/labels/service/values", params=asked)).json()

    assert [one["message"] for one in found] == ["1 days"]
    assert counted["values"] == [{"value": "shop", "count": 1}]


# ---- refusals --------------------------------------------------------------------------------


async def test_a_bad_query_is_refused_with_its_place(empty_client):
    answer = await empty_client.get(
        "/api/v1/query", params={"query": '{service="shop"}\n  |= nothing'}
    )

    error = await problem(answer)
    assert answer.status_code == 400
    assert error["code"] == "bad_query"
    assert "line 2, column 6" in error["message"]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        pytest.param({"limt": "5"}, "limt", id="an unknown parameter"),
        pytest.param({"limit": "0"}, "limit", id="a limit of none"),
        pytest.param({"limit": "5001"}, "5,000", id="too large a limit"),
        pytest.param({"limit": "ten"}, "ten", id="a limit in words"),
        pytest.param({"direction": "up"}, "forward", id="an unknown direction"),
        pytest.param({"format": "xml"}, "ndjson", id="an unknown format"),
        pytest.param({"start": "yesterday"}, "yesterday", id="a moment in words"),
        pytest.param({"start": "now", "end": "-1m"}, "start", id="a range that ends first"),
        pytest.param({"start": "9" * 19, "end": "9" * 20}, "9999", id="a moment beyond 64 bits"),
        pytest.param({"query": '{a=~"(?<=b)"}'}, "RE2", id="what RE2 does not know"),
        pytest.param({"query": '{} |~ "(a{1000}){1000}"'}, "RE2", id="a giant expression"),
        pytest.param({"query": "{" + " " * 70_000}, "65536 bytes", id="a giant query"),
    ],
)
async def test_what_is_wrong_is_named(empty_client, asked, named):
    answer = await empty_client.post("/api/v1/query", data=asked)

    error = await problem(answer)
    assert answer.status_code == 400
    assert named in error["message"] + error["hint"]


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        pytest.param(b"{", "application/json", 400, id="broken JSON"),
        pytest.param(b"[]", "application/json", 400, id="a list"),
        pytest.param(b'{"limit": true}', "application/json", 400, id="a truth for a number"),
        pytest.param(b'{"limit": 1.5}', "application/json", 400, id="half a record"),
        pytest.param(b"[" * 100_000, "application/json", 400, id="deep JSON"),
        pytest.param(b"query=\xff", "application/x-www-form-urlencoded", 400, id="no UTF-8"),
        pytest.param(b"limit=1&limit=2", "application/x-www-form-urlencoded", 400, id="twice"),
        pytest.param(b"<a/>", "text/xml", 415, id="another type"),
        pytest.param(b"x" * (params.MAX_BODY_BYTES + 1), "application/json", 413, id="too large"),
    ],
)
async def test_a_body_that_holds_no_parameters_is_refused(empty_client, body, content_type, status):
    answer = await empty_client.post(
        "/api/v1/query", content=body, headers={"content-type": content_type}
    )

    await problem(answer)
    assert answer.status_code == status


async def test_a_parameter_in_the_url_and_in_the_body_is_refused(empty_client):
    answer = await empty_client.post("/api/v1/query", params={"limit": 1}, json={"limit": 1})

    assert answer.status_code == 400
    assert "limit" in (await problem(answer))["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        pytest.param("GET", "/api/v1/nothing", 404, id="no such path"),
        pytest.param("GET", "/api/v1/query/", 404, id="a slash too many"),
        pytest.param("GET", "/docs", 404, id="no documentation pages of the framework"),
        pytest.param("DELETE", "/api/v1/query", 405, id="a method that is not taken"),
        pytest.param("GET", "/api/v1/labels//values", 400, id="a label without a name"),
        pytest.param("GET", f"/api/v1/labels/{'x' * 65}/values", 400, id="too long a name"),
    ],
)
async def test_what_is_not_there_has_the_shape_of_all_errors(empty_client, method, path, status):
    answer = await empty_client.request(method, path)

    await problem(answer)
    assert answer.status_code == status


# ---- cursors ---------------------------------------------------------------------------------


@pytest.fixture
async def cursor(client, tenant) -> str:
    """Of `{}` over three records, two of which have been seen."""
    await tenant.store_records(records(3))
    return (await client.get("/api/v1/query", params={"limit": 2})).json()["cursor"]


async def test_a_cursor_keeps_its_range_while_time_goes_on(client, tenant, cursor):
    await tenant.store_records([record("later")])

    asked = {"cursor": cursor, "start": "-1s"}
    found = (await client.get("/api/v1/query", params=asked)).json()

    assert [one["message"] for one in found["records"]] == ["message 0"]


async def test_a_cursor_of_another_query_is_refused(client, cursor):
    answer = await client.get("/api/v1/query", params={"cursor": cursor, "query": '{a="b"}'})

    assert answer.status_code == 400
    assert "another query" in (await problem(answer))["message"]


async def test_a_cursor_of_another_tenant_is_refused(make_tenant, client_of, cursor):
    other = await make_tenant()
    client = await client_of(await other.api_key(keys.SCOPE_QUERY))

    answer = await client.get("/api/v1/query", params={"cursor": cursor})

    assert answer.status_code == 400


async def test_a_cursor_is_not_turned_round(client, cursor):
    answer = await client.get("/api/v1/query", params={"cursor": cursor, "direction": "forward"})

    assert answer.status_code == 400
    assert "forward" in (await problem(answer))["message"]


async def test_no_damaged_cursor_is_taken(client, cursor):
    raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    damaged = [
        base64.urlsafe_b64encode(raw[:at] + bytes([raw[at] ^ 0x40]) + raw[at + 1 :]).decode()
        for at in range(len(raw))
    ]

    statuses = {
        (await client.get("/api/v1/query", params={"cursor": one})).status_code
        for one in [*damaged, "x", "ü", "=", "A" * 500, cursor + "AAAA", cursor[:-4]]
    }

    assert statuses == {400}


# ---- labels and fields -----------------------------------------------------------------------


async def test_labels_and_their_values_are_counted(client, tenant):
    await tenant.store_records([*records(3), record("x", service="cart", level="error")])

    names = (await client.get("/api/v1/labels")).json()
    values = (await client.get("/api/v1/labels/service/values")).json()

    assert names["labels"] == ["level", "pipeline", "service"]
    assert values["values"] == [{"value": "shop", "count": 3}, {"value": "cart", "count": 1}]
    assert values["distinct"] == 2


async def test_values_of_a_label_with_a_slash_in_its_name_are_found(client, tenant):
    await tenant.store_records([record("x", labels={"app/name": "web"})])

    values = (await client.get("/api/v1/labels/app/name/values")).json()["values"]

    assert values == [{"value": "web", "count": 1}]


async def test_more_values_than_an_answer_holds_are_still_counted(client, tenant, monkeypatch):
    monkeypatch.setattr(api, "MAX_LABEL_VALUES", 2)
    await tenant.store_records([record("x", service=f"s{n}") for n in (1, 1, 1, 2, 2, 3)])

    found = (await client.get("/api/v1/labels/service/values")).json()

    assert found["values"] == [{"value": "s1", "count": 3}, {"value": "s2", "count": 2}]
    assert found["distinct"] == 3


async def test_fields_are_of_a_sample_of_the_newest_matching_records(client, tenant):
    at_ns = time.time_ns()
    await store_rows(
        tenant,
        [record("m", timestamp=at_ns - n, metadata={"n": n, "old": True}) for n in range(5, 9)]
        + [record("m", timestamp=at_ns - n, metadata={"n": n}) for n in range(1, 4)]
        + [record("other", timestamp=at_ns, metadata={"other": 1})],
    )

    asked = {"query": '{} |= "m"', "limit": 3}
    found = (await client.get("/api/v1/fields", params=asked)).json()

    assert [field["path"] for field in found["fields"]] == ["n"]
    assert (found["sampled"], found["stopped"]) == (3, "limit")
