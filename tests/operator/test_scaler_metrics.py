"""What the scaler tells Prometheus of each pipeline, also of those without collectors."""

from __future__ import annotations

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
