"""Histograms and label values: counts equal those of a plain model."""

from __future__ import annotations

import random
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from builders import record
from hypothesis import given
from hypothesis import strategies as st
from querying import HOUR_NS, MINUTE_NS, Query, Row, fill, merge_some, random_query, store_rows

from logweir.core import access, errors
from logweir.core.labels import LabelTable
from logweir.query import count, engine, params, tally
from logweir.query import plan as planning

SEEDS = [1, 2]


def plain_histogram(
    rows: list[Row], query: Query, window: params.Window, buckets: params.Buckets, by: list[str]
) -> dict[tuple, dict[int, int]]:
    """Counts by group, then by the place of the bucket."""
    found: dict[tuple, Counter] = {}
    for row in rows:
        if window.start_ns <= row.time_ns < window.end_ns and query.keeps(row):
            group = tuple(sorted((n, row.labels[n]) for n in by if row.labels.get(n)))
            place = (row.time_ns - buckets.first_ns) // buckets.step_ns
            found.setdefault(group, Counter())[place] += 1
    return {group: dict(counts) for group, counts in found.items()}


def as_counts(answer: dict) -> dict[tuple, dict[int, int]]:
    return {
        tuple(sorted(one["labels"].items())): {p: n for p, n in enumerate(one["counts"]) if n}
        for one in answer["series"]
    }


@pytest.fixture
async def tenant(make_tenant):
    return await make_tenant(pipelines=["default", "other"])


@pytest.mark.parametrize("seed", SEEDS)
async def test_any_histogram_equals_a_plain_count(client, tenant, seed):
    rng = random.Random(seed)
    now_ns = time.time_ns()
    rows = await fill(tenant, rng, now_ns)

    for _ in range(40):
        query = rng.choice([random_query(rng), Query(random_query(rng).matchers)])
        edges_ns = [
            rng.choice(rows).time_ns + rng.randrange(-MINUTE_NS // 2, MINUTE_NS // 2)
            for _ in range(2)
        ]
        start_ns, end_ns = sorted([edges_ns[0], rng.choice([edges_ns[1], now_ns])])
        if rng.random() < 0.5:
            start_ns = start_ns // MINUTE_NS * MINUTE_NS
        if rng.random() < 0.5:
            end_ns = -(-end_ns // MINUTE_NS) * MINUTE_NS
        asked = {"query": query.text(), "start": str(start_ns), "end": str(end_ns)}
        asked |= rng.choice([{"step": "1m"}, {"step": "7m"}, {"step": "61s"}, {"buckets": "9"}, {}])
        if rng.random() < 0.4:
            asked["offset"] = rng.choice(["30s", "-90s", "2h", "5m"])
        by = rng.sample(["level", "service", "host", "pipeline", "absent"], k=rng.randrange(4))
        window = params.Window(start_ns, end_ns)
        buckets = params.buckets(asked, window)
        answer = await client.get("/api/v1/histogram", params=asked | {"by": ",".join(by)})
        found = answer.json()

        assert [int(one) for one in found["buckets"]] == buckets.starts_ns()
        assert as_counts(found) == plain_histogram(rows, query, window, buckets, by), asked
        assert (found["stopped"], found["exact_from"]) == (None, None)


async def test_counts_of_minutes_and_of_rows_agree(client, tenant):
    rng = random.Random(7)
    now_ns = time.time_ns()
    await fill(tenant, rng, now_ns)
    end_ns = (now_ns // MINUTE_NS + 1) * MINUTE_NS
    asked = {"start": end_ns - 2 * HOUR_NS, "end": end_ns, "step": "5m", "by": "level,host"}

    by_minutes = (await client.get("/api/v1/histogram", params=asked)).json()
    by_rows = (await client.get("/api/v1/histogram", params=asked | {"query": '{} |= ""'})).json()

    assert by_minutes["series"] == by_rows["series"]
    assert by_minutes["stats"]["opened"] == 0
    assert by_rows["stats"]["opened"] > 0


async def test_all_buckets_together_hold_every_record_also_after_merges(client, tenant):
    rng = random.Random(8)
    now_ns = time.time_ns()
    rows = await fill(tenant, rng, now_ns)
    for _ in range(4):
        await merge_some(tenant, rng)

    asked = {"start": now_ns - 2 * HOUR_NS, "by": ""}
    [series] = (await client.get("/api/v1/histogram", params=asked)).json()["series"]

    assert sum(series["counts"]) == len(rows)


@pytest.mark.parametrize("seed", SEEDS)
async def test_labels_and_values_equal_a_plain_count(client, tenant, seed):
    rng = random.Random(seed)
    now_ns = time.time_ns()
    rows = await fill(tenant, rng, now_ns)

    for _ in range(8):
        query = random_query(rng)
        asked = {"query": query.text(), "start": now_ns - 2 * HOUR_NS}
        matching = [row for row in rows if query.keeps(row)]
        name = rng.choice(["service", "host", "team", "pipeline"])
        names = (await client.get("/api/v1/labels", params=asked)).json()["labels"]
        found = (await client.get(f"/api/v1/labels/{name}/values", params=asked)).json()

        assert names == sorted({name for row in matching for name in row.labels})
        expected = Counter(row.labels[name] for row in matching if row.labels.get(name))
        assert {one["value"]: one["count"] for one in found["values"]} == expected


async def test_a_count_that_ends_early_says_from_when_on_it_is_exact(tenant):
    now_ns = time.time_ns() - 10**9
    rows = []
    for age in range(9):
        times = [now_ns - (age * 10 + n) * MINUTE_NS // 2 for n in range(30)]
        rows += await store_rows(tenant, [record(str(n), timestamp=n) for n in times])
    window = params.Window(now_ns - HOUR_NS, now_ns + 1)
    known = {tenant.pipeline: access.Pipeline(tenant.pipeline, "default", 30)}
    plan = planning.plan('{} |= ""', window, known, now_ns)
    reader, stopped = tenant.reader(), []

    for max_bytes in range(1, 9000, 200):
        seconds = params.Buckets(window.start_ns, 10**9, 3601)
        found = tally.Tally(seconds, lambda _, __: ())
        run = engine.Run(engine.Budget(1e9, max_bytes))
        counted = await count.count(reader, plan, found, run)
        stopped.append(counted.stopped)
        exact_from_ns = counted.exact_from_ns or window.start_ns
        exact = [at for at, ns in enumerate(seconds.starts_ns()) if ns >= exact_from_ns]
        first_ns = seconds.starts_ns()[exact[0]]

        assert sum(found.series()[()][exact]) == sum(row.time_ns >= first_ns for row in rows)
    assert set(stopped) == {"bytes", None}


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        pytest.param({"step": "1s", "start": "-1d"}, "86,40", id="too many buckets"),
        pytest.param({"step": "1m", "buckets": "5"}, "not both", id="step and buckets"),
        pytest.param({"step": "0s"}, "longer than 0", id="no step"),
        pytest.param({"step": "soon"}, "soon", id="no duration"),
        pytest.param({"buckets": "0"}, "buckets", id="no buckets"),
        pytest.param({"offset": "--5m"}, "duration", id="a double sign"),
        pytest.param({"limit": "5"}, "limit", id="a parameter of another endpoint"),
    ],
)
async def test_a_histogram_that_cannot_be_is_refused(empty_client, asked, named):
    answer = await empty_client.get("/api/v1/histogram", params=asked)

    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]


def test_too_many_groups_are_refused(monkeypatch):
    monkeypatch.setattr(tally, "MAX_CELLS", 10)
    counts = tally.Tally(params.Buckets(0, 1, 5), lambda _, labels: labels)
    one = tally.np.zeros(1, tally.np.int64)

    def source(value: str) -> SimpleNamespace:
        table = LabelTable()
        ids = table.ids([(("a", value),)])
        return SimpleNamespace(pipeline=1, table=table, label_ids=ids)

    counts.add_rows(source("1"), one, one)
    counts.add_rows(source("2"), one, one)

    with pytest.raises(errors.BadRequestError, match="more than 2 groups in 5 buckets"):
        counts.add_rows(source("3"), one, one)


@given(
    start_ns=st.integers(-(10**12), 10**12),
    width_ns=st.integers(1, 10**12),
    asked=st.one_of(
        st.builds(lambda n: {"step": f"{n}s"}, st.integers(1, 1000)),
        st.builds(lambda n: {"buckets": str(n)}, st.integers(1, 1000)),
        st.builds(lambda n, o: {"step": f"{n}s", "offset": f"{o}s"}, *[st.integers(1, 1000)] * 2),
    ),
)
def test_buckets_cover_the_range_without_an_empty_one_at_either_end(start_ns, width_ns, asked):
    window = params.Window(start_ns, start_ns + width_ns)

    buckets = params.buckets(asked, window)

    first, last = buckets.starts_ns()[0], buckets.starts_ns()[-1]
    assert first <= window.start_ns < first + buckets.step_ns
    assert last < window.end_ns <= last + buckets.step_ns
