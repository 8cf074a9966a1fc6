"""What `/api/v1/usage` answers: hours that add up, also after the keeper has summed them."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta

import keeping
import pytest
from keeping import ask
from world import Tenant

from logweir.core import errors, keys
from logweir.query import usage
from logweir.query.usage import Row

HOUR = timedelta(hours=1)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
RANGE = {"start": "2026-03-01T00:00:00Z", "end": "2026-03-03T00:00:00Z"}
COUNTS = ("requests", "stored", "quarantined", "expired", "repeated", "raw_bytes", "stored_bytes")


async def add(tenant: Tenant, at: datetime, *, pipeline: str = "default", refused="{}", **counts):
    values = dict.fromkeys(COUNTS, 0) | counts
    await ask(
        tenant,
        f"insert into {{}}.usage (at, pipeline, refused, {', '.join(values)})"
        f" values (%s, %s, %s::jsonb, {', '.join(['%s'] * len(values))})",
        [at, tenant.pipelines[pipeline].id, refused, *values.values()],
    )


@pytest.fixture
async def two(make_tenant) -> Tenant:
    """Two pipelines with usage of two days."""
    tenant = await make_tenant(pipelines=("default", "audit"))
    for minutes in (0, 5, 59):
        await add(
            tenant,
            NOON + timedelta(minutes=minutes),
            requests=2,
            stored=10,
            repeated=1,
            raw_bytes=1000,
            stored_bytes=100,
            refused='{"over_limit": 2, "too_large": 1}',
        )
    await add(tenant, NOON + 4 * HOUR, requests=1, expired=3, stored_bytes=-50)
    await add(tenant, NOON + 24 * HOUR, requests=1, quarantined=5, refused='{"over_limit": 1}')
    await add(tenant, NOON, pipeline="audit", requests=7, stored=7)
    await add(tenant, NOON - 48 * HOUR, requests=100)
    await add(tenant, NOON + 48 * HOUR, requests=100)
    return tenant


def ns(at: datetime) -> str:
    return f"{int(at.timestamp())}000000000"


def row(at: datetime, pipeline: str = "default", **values) -> dict:
    zeros = dict.fromkeys((*COUNTS, "accepted"), 0)
    return {"start": ns(at), "pipeline": pipeline, "refused": {}} | zeros | values


FIRST = {"requests": 6, "stored": 30, "repeated": 3, "raw_bytes": 3000, "stored_bytes": 300}
REFUSED = {"over_limit": 6, "too_large": 3}


async def test_hours_of_each_pipeline_add_up_before_and_after_the_keeper_sums_them(two, client_of):
    client = await client_of(await two.api_key(keys.SCOPE_QUERY))
    hours = [
        row(NOON, "audit", requests=7, stored=7, accepted=7),
        row(NOON, accepted=33, refused=REFUSED, **FIRST),
        row(NOON + 4 * HOUR, requests=1, expired=3, accepted=3, stored_bytes=-50),
        row(NOON + 24 * HOUR, requests=1, quarantined=5, accepted=5, refused={"over_limit": 1}),
    ]

    before = (await client.get("/api/v1/usage", params=RANGE)).json()
    summed = await keeping.keeper_store(two).sum_usage(NOON + 72 * HOUR)
    after = (await client.get("/api/v1/usage", params=RANGE)).json()

    assert before["usage"] == hours
    assert (before["step"], before["start"]) == ("hour", ns(NOON - 12 * HOUR))
    assert summed == 3
    assert after == before


async def test_a_day_and_the_whole_are_the_sums_of_their_hours(two, client_of):
    client = await client_of(await two.api_key(keys.SCOPE_QUERY))

    days = (await client.get("/api/v1/usage", params=RANGE | {"step": "day"})).json()["usage"]
    whole = (
        await client.get("/api/v1/usage", params=RANGE | {"step": "total", "by": "tenant"})
    ).json()["usage"]

    midnight = NOON - 12 * HOUR
    assert [(one["start"], one["pipeline"], one["requests"]) for one in days] == [
        (ns(midnight), "audit", 7),
        (ns(midnight), "default", 7),
        (ns(midnight + 24 * HOUR), "default", 1),
    ]
    assert whole == [
        row(
            midnight,
            "",
            **FIRST
            | {"requests": 15, "stored": 37, "expired": 3, "quarantined": 5, "accepted": 48}
            | {"stored_bytes": 250, "refused": {"over_limit": 7, "too_large": 3}},
        )
    ]


async def test_a_key_of_one_pipeline_sees_its_usage_alone(two, client_of):
    client = await client_of(await two.api_key(keys.SCOPE_QUERY, two.pipelines["audit"].id))

    for by in ("pipeline", "tenant"):
        found = (await client.get("/api/v1/usage", params=RANGE | {"by": by})).json()["usage"]
        assert [one["requests"] for one in found] == [7]


async def test_an_ingest_key_does_not_open_usage(two, client_of):
    client = await client_of(await two.api_key(keys.SCOPE_INGEST))

    assert (await client.get("/api/v1/usage")).status_code == 403


@pytest.mark.parametrize(
    ("headers", "params"),
    [
        pytest.param({"accept": "text/csv"}, {}, id="by Accept"),
        pytest.param({}, {"format": "csv"}, id="by the parameter"),
    ],
)
async def test_usage_comes_as_csv_when_it_is_wanted(two, client_of, headers, params):
    client = await client_of(await two.api_key(keys.SCOPE_QUERY))

    got = await client.get("/api/v1/usage", params=RANGE | params, headers=headers)

    assert got.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(got.text)))
    assert list(rows[0])[:4] == ["start", "pipeline", "requests", "accepted"]
    assert [(one["start"], one["requests"], one["refused"]) for one in rows] == [
        ("2026-03-01T12:00:00Z", "7", "0"),
        ("2026-03-01T12:00:00Z", "6", "9"),
        ("2026-03-01T16:00:00Z", "1", "0"),
        ("2026-03-02T12:00:00Z", "1", "1"),
    ]
    assert rows[1]["refused_by_reason"] == "over_limit=6 too_large=3"


async def test_the_parameter_wins_over_the_header(two, client_of):
    client = await client_of(await two.api_key(keys.SCOPE_QUERY))

    got = await client.get(
        "/api/v1/usage", params={"format": "json"}, headers={"accept": "text/csv"}
    )

    assert got.json()["usage"] == []


@pytest.mark.parametrize(
    "params", [{"step": "week"}, {"by": "key"}, {"format": "xml"}, {"start": "now"}, {"limit": "1"}]
)
async def test_wrong_parameters_of_usage_are_refused_and_named(empty_client, params):
    got = await empty_client.get("/api/v1/usage", params=params)

    assert got.status_code == 400
    assert next(iter(params)) in str(got.json()["error"])


async def test_too_many_rows_are_refused_with_the_way_out(two, client_of, monkeypatch):
    monkeypatch.setattr(usage, "MAX_ROWS", 3)
    client = await client_of(await two.api_key(keys.SCOPE_QUERY))

    got = await client.get("/api/v1/usage", params=RANGE)
    longer = await client.get("/api/v1/usage", params=RANGE | {"step": "day"})

    assert got.status_code == 400
    assert "step=day" in got.json()["error"]["hint"]
    assert longer.status_code == 200


NOW_NS = int(datetime(2026, 3, 1, 12, 34, 56, tzinfo=UTC).timestamp()) * 10**9


@pytest.mark.parametrize(
    ("texts", "step", "first", "hours"),
    [
        ({}, "hour", datetime(2026, 2, 28, 12, tzinfo=UTC), 25),
        ({}, "day", datetime(2026, 1, 30, tzinfo=UTC), 31 * 24),
        ({"start": "-10m"}, "total", datetime(2026, 3, 1, 12, tzinfo=UTC), 1),
        ({"start": "-1s", "end": "now"}, "day", datetime(2026, 3, 1, tzinfo=UTC), 24),
    ],
)
def test_a_range_is_widened_to_whole_hours_or_days(texts, step, first, hours):
    begin_s, end_s = usage.span(texts, step, NOW_NS)

    assert begin_s == first.timestamp()
    assert end_s - begin_s == hours * 3600


def test_an_empty_range_is_refused():
    with pytest.raises(errors.BadRequestError, match="empty"):
        usage.span({"start": "now", "end": "-1h"}, "hour", NOW_NS)


def test_no_rows_are_a_head_alone_in_csv():
    assert usage.as_csv([]).decode().count("\n") == 1


def test_pipelines_that_had_one_name_are_one_row():
    from logweir.backends.segments_reader import Used
    from logweir.core.names import PipelineId

    found = [Used(0, PipelineId(one), 1, 2, 0, 0, 0, 10, 5, {"too_large": 1}) for one in (1, 2, 3)]

    rows = usage.rows_of(found, dict(zip(map(PipelineId, (1, 2, 3)), "aab", strict=True)))

    assert [(one.pipeline, one.requests, one.refused) for one in rows] == [
        ("a", 2, {"too_large": 2}),
        ("b", 1, {"too_large": 1}),
    ]
    assert isinstance(rows[0], Row)
