"""When the scaler looks at a pipeline, and what it tells Prometheus of it."""

from __future__ import annotations

from msgspec.structs import replace
from redis import asyncio as redis
from viewing import pipeline_view

from logweir.core.backlog import Sample
from logweir.core.names import PipelineId, TenantId
from logweir.runtime import metrics
from logweir_operator.scaler import Scaled, Scaler

KEY = ("LogPipeline", "team", "web")
OLDEST = 'logweir_operator_journal_oldest_seconds{pipeline="web",tenant="acme-co"}'


async def test_the_age_of_the_oldest_record_is_told_and_forgotten_with_its_pipeline():
    one = Scaled(TenantId("acme-co"), PipelineId(7), pipeline_view().resource, 10, 0, 0)
    wanted = {KEY: one}
    nobody = redis.Redis(port=1)  # nothing listens there: the journal is away
    scaler = Scaler(nobody, lambda: wanted, lambda _: None)

    scaler._decide(KEY, one, Sample(1.0, entries=1, backlog_bytes=9, oldest_age_s=7.5), 1.0)
    assert f"{OLDEST} 7.5" in metrics.text().decode()
    scaler._decide(KEY, one, None, 2.0)
    assert f"{OLDEST} 7.5" in metrics.text().decode()
    wanted.clear()
    await scaler._look()
    await nobody.aclose()

    assert OLDEST not in metrics.text().decode()


async def test_a_changed_number_of_collectors_is_seen_at_the_next_look_and_not_only_when_due():
    manual = {"collector": {"autoscaling": {"driver": "None"}, "replicas": 1}}
    resource = pipeline_view(spec=manual).resource
    one = Scaled(TenantId("acme-co"), PipelineId(7), resource, 10, 1, 1)
    wanted = {KEY: one}
    nobody = redis.Redis(port=1)
    scaler = Scaler(nobody, lambda: wanted, lambda _: None)
    await scaler._look()
    assert scaler.decisions[KEY].replicas == 1

    collector = replace(resource.spec.collector, replicas=2)
    changed = replace(resource, spec=replace(resource.spec, collector=collector))
    wanted[KEY] = replace(one, resource=changed)
    await scaler._look()
    await nobody.aclose()

    assert scaler.decisions[KEY].replicas == 2
