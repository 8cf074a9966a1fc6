"""When a resource is looked at again, by what the watches say of it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from logweir_operator.cache import Cache
from logweir_operator.knowing import Knowing
from logweir_operator.kube import Kube
from logweir_operator.resources import Key

KEY = ("LogPipeline", "team", "web")


def pipeline(version: int, **meta: Any) -> dict[str, Any]:
    stamp = {"creationTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": str(version)}
    named = {"namespace": "team", "name": "web", "uid": "p1"}
    return {"metadata": named | stamp | meta, "spec": {}}


@pytest.fixture
async def known() -> Cache:
    return Cache()


@pytest.fixture
async def told() -> list[Key]:
    return []


@pytest.fixture
async def knowing(known: Cache, told: list[Key]) -> Knowing:
    """One that has seen the pipeline, and told of it."""
    made = Knowing(cast("Kube", None), known, (), (), told.append, lambda: None)
    made.seen("LogPipeline", "ADDED", pipeline(1))
    told.clear()
    return made


async def test_an_annotation_is_told_of_though_an_answer_to_our_own_write_had_it_already(
    known: Cache, told: list[Key], knowing: Knowing
):
    asked = {"annotations": {"logweir.dev/abandon-external": "true"}}
    known.put_resource("LogPipeline", pipeline(3, **asked))  # of a status that came after it
    knowing.seen("LogPipeline", "MODIFIED", pipeline(2, **asked))

    assert told == [KEY]
    assert known.resources[KEY].version == 3


async def test_a_status_of_our_own_is_not_told_of(told: list[Key], knowing: Knowing):
    knowing.seen("LogPipeline", "MODIFIED", pipeline(2))

    assert told == []


async def test_what_went_and_came_again_is_told_of(told: list[Key], knowing: Knowing):
    knowing.seen("LogPipeline", "DELETED", pipeline(2))
    knowing.seen("LogPipeline", "ADDED", pipeline(3))

    assert told == [KEY, KEY]
