"""Of which looks at a journal a pipeline's status is told, and of which not."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import pytest
import world
from redis import asyncio as redis
from viewing import pipeline_view

from logweir.core.backlog import Sample
from logweir.core.names import PipelineId, TenantId
from logweir_operator import scaler as scaler_module
from logweir_operator.scaler import Scaled, Scaler

KEY = ("LogPipeline", "team", "web")
MIB = 1 << 20


def scaled(current: int = 1, tenant: str = "acme-co", pipeline: int = 7, **spec) -> Scaled:
    return Scaled(
        TenantId(tenant),
        PipelineId(pipeline),
        pipeline_view(spec=spec).resource,
        most=10,
        current=current,
        ready=current,
    )


def sample(at_s: float, backlog: int = 0, *, stored: int = 0, age_s: float | None = None) -> Sample:
    """A sample of so many bytes that wait, all appended before; they wait for a second."""
    return Sample(
        at_s,
        backlog_bytes=backlog,
        entries=-(-backlog // MIB),
        oldest_age_s=(1.0 if age_s is None else age_s) if backlog else None,
        appended_bytes=backlog + stored,
        stored_bytes=stored,
    )


class Told:
    """A scaler that is given samples, and which of them it tells of."""

    def __init__(self, journal: redis.Redis) -> None:
        self.keys: list[tuple] = []
        self.scaler = Scaler(journal, dict, self.keys.append)

    def of(self, at_s: float, found: Sample | None, one: Scaled | None = None) -> bool:
        self.keys.clear()
        self.scaler._decide(KEY, one or scaled(), found, at_s)
        return self.keys == [KEY]


@pytest.fixture
async def told() -> AsyncIterator[Told]:
    nobody = redis.Redis(port=1)
    yield Told(nobody)
    await nobody.aclose()


def test_the_first_look_is_news_and_the_same_again_never(told):
    assert told.of(1.0, sample(1.0))
    assert not any(told.of(at_s, sample(at_s)) for at_s in range(16, 3600, 15))


def test_that_something_waits_is_news_and_that_nothing_does_too(told):
    told.of(1.0, sample(1.0))

    assert told.of(16.0, sample(16.0, 200))
    assert told.of(31.0, sample(31.0, stored=200))


@pytest.mark.parametrize(
    ("backlog", "is_news"), [(115, False), (85, False), (125, True), (75, True)]
)
def test_a_backlog_is_news_when_it_has_changed_by_a_fifth(told, backlog, is_news):
    one = scaled(current=10)  # as many as there may be
    told.of(1.0, sample(1.0, 100 * MIB), one)
    told.of(16.0, sample(16.0, 100 * MIB), one)
    moved = MIB * max(0, 100 - backlog)

    assert told.of(31.0, sample(31.0, backlog * MIB, stored=moved), one) == is_news


def test_small_changes_are_summed_up_since_the_last_that_was_told(told):
    one = scaled(current=10)
    news = [told.of(at_s, sample(at_s, (100 + at_s) * MIB), one) for at_s in range(1, 61, 4)]
    assert news.count(True) == 3  # 101, 125, 153 MiB


def test_what_is_under_way_is_no_news_until_nothing_is(told):
    told.of(1.0, sample(1.0, 100_000))
    told.of(16.0, sample(16.0, 100_000, stored=15 * MIB))
    later = [
        told.of(at_s, sample(at_s, backlog, stored=at_s * MIB))
        for at_s, backlog in [(31, 500_000), (41, 20_000), (51, 900_000)]
    ]
    assert later == [False, False, False]
    assert told.of(56.0, sample(56.0, stored=56 * MIB))


def test_what_stands_still_is_told_each_minute_as_it_grows_older(told):
    one = scaled(current=10, slo={"queryableWithinSeconds": 3600})
    told.of(1.0, sample(1.0, MIB, age_s=1.0), one)
    told.of(16.0, sample(16.0, MIB, age_s=16.0), one)
    last = [
        at_s for at_s in range(31, 301, 15) if told.of(at_s, sample(at_s, MIB, age_s=at_s), one)
    ]

    assert all(60 < later - before <= 75 for before, later in itertools.pairwise(last))
    assert len(last) >= 3


def test_rates_that_fade_are_told_until_they_are_nothing(told):
    one = scaled()
    for at_s in (1, 16, 31):
        told.of(at_s, sample(at_s, stored=at_s * 1000), one)
    news = {at_s: told.of(at_s, sample(at_s, stored=31_000), one) for at_s in range(46, 1800, 15)}

    assert told.scaler.decisions[KEY].memory.arrival < 1
    assert any(news.values())
    assert not any(is_news for at_s, is_news in news.items() if at_s > 900)


def test_a_missed_goal_is_news_once_and_so_is_its_end(told):
    one = scaled(collector={"replicas": 1, "autoscaling": {"driver": "None"}})
    news = [
        told.of(at_s, sample(at_s, 100 * MIB, age_s=age_s), one)
        for at_s, age_s in [(1, 1.0), (3, 9.0), (5, 11.0), (7, 13.0), (9, 1.0), (11, 1.0)]
    ]
    assert news == [True, False, True, False, True, False]
    assert told.scaler.fresh[KEY][:2] == ("True", "WithinGoal")


def test_a_journal_that_goes_away_is_news_once_and_leaves_what_was_seen(told):
    told.of(1.0, sample(1.0, 100))
    news = [told.of(at_s, None) for at_s in (16.0, 31.0, 46.0, 61.0)]

    assert news == [True, False, False, False]
    assert told.scaler.fresh[KEY][0] == "Unknown"
    assert told.of(76.0, sample(76.0, 100))


def test_a_number_that_is_not_there_yet_is_told_at_each_look(told):
    one = scaled(collector={"replicas": 3, "autoscaling": {"driver": "None"}})
    assert [told.of(at_s, sample(at_s), one) for at_s in (1.0, 16.0, 31.0)] == [True] * 3


async def test_a_pipeline_that_comes_back_is_news_again(told):
    told.of(1.0, sample(1.0))
    await told.scaler._look()  # it is not among those that are to be scaled

    assert (told.scaler.decisions, told.scaler.fresh, told.scaler._told_of) == ({}, {}, {})
    assert told.of(2.0, sample(2.0))


async def test_one_record_in_a_real_journal_wakes_and_tells_within_a_look(
    make_journal_tenant, monkeypatch
):
    tenant = await make_journal_tenant()
    asleep = scaled(0, tenant.id, tenant.pipeline, collector={"autoscaling": {"minReplicas": 0}})
    keys: list[tuple] = []
    scaler = Scaler(tenant.redis, lambda: {KEY: asleep}, keys.append)
    now_s = 1000.0
    monkeypatch.setattr(scaler_module.time, "monotonic", lambda: now_s)

    await scaler._look()
    first = (list(keys), scaler.decisions[KEY].replicas)
    now_s += 2.0
    await scaler._look()
    idle = list(keys)
    await tenant.appender().append(
        tenant.pipeline, world.new_uuid(), b"x", accepted=1, size_bytes=1, requests=1, keyed=[]
    )
    now_s += 2.0
    await scaler._look()

    assert first == ([KEY], 0)
    assert idle == [KEY]
    assert keys == [KEY, KEY]
    assert scaler.decisions[KEY].replicas == 1
    assert scaler.samples[KEY][0].entries == 1
