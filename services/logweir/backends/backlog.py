"""How much waits in the journals of many pipelines, asked in one round trip.

    samples(journal, [(tenant, pipeline), ...]) -> lw_samples for each hundred -> Samples

The user needs `+fcall_ro|lw_samples +time +xlen +hmget +xpending +xrange` of the journal's ACL, and
to read the keys `q` and `c` of pipelines.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence
from typing import Any, Final, TypeVar

from redis import asyncio as redis

from logweir.backends import journal
from logweir.core import names
from logweir.core.backlog import Sample
from logweir.core.names import PipelineId, TenantId

Item = TypeVar("Item")

logger = logging.getLogger(__name__)

TIMEOUT_S: Final = 5.0
STREAMS_A_CALL: Final = 100
"""Some 0.3 ms of the server's time, during which it serves nobody else."""

_VALUES: Final = 5
"""Of each stream in the answer of lw_samples."""


async def samples(
    client: redis.Redis, wanted: Sequence[tuple[TenantId, PipelineId]]
) -> dict[PipelineId, Sample]:
    """Return a sample of each pipeline; a stream that is not there holds nothing.

    A pipeline whose stream alone cannot be asked is left out, and its reason is in the log.

    Args:
        client: of the server that has all of them, as the operator's user.
        wanted: the pipelines.

    Raises:
        UnavailableError: the journal did not answer, or refused all of them.
    """
    calls = _calls(wanted)
    if not calls:
        return {}
    async with (
        journal.door("say what waits", TIMEOUT_S),
        client.pipeline(transaction=False) as pipe,
    ):
        for call in calls:
            streams = [names.journal_pipeline(*one) + "q" for one in call]
            pipe.execute_command(
                "FCALL_RO", "lw_samples", len(streams), *streams, names.CONSUMER_GROUP
            )
        answers = await pipe.execute()
    at_s = time.monotonic()
    found: dict[PipelineId, Sample] = {}
    refused: dict[PipelineId, str] = {}
    for call, (now_ms, *values) in zip(calls, answers, strict=True):
        for (_, pipeline), one in zip(call, _chunks(values, _VALUES), strict=True):
            if isinstance(one[0], int):
                found[pipeline] = _sample(at_s, int(now_ms), one)
            else:
                refused[pipeline] = one[0].decode(errors="replace")
    if refused and not found:
        raise journal.UnreachableError("say what waits", next(iter(refused.values())))
    for pipeline, why in refused.items():
        logger.warning("journal refuses a sample", extra={"pipeline": pipeline, "why": why})
    return found


def _calls(
    wanted: Sequence[tuple[TenantId, PipelineId]],
) -> list[list[tuple[TenantId, PipelineId]]]:
    """Streams of one hash tag each: keys of one call must be in one slot."""

    def tag(one: tuple[TenantId, PipelineId]) -> str:
        return names.journal_tenant(one[0]).partition(":")[0]

    return [
        call
        for _, same in itertools.groupby(sorted(wanted, key=tag), tag)
        for call in _chunks(list(same), STREAMS_A_CALL)
    ]


def _chunks(values: list[Item], size: int) -> list[list[Item]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _sample(at_s: float, now_ms: int, values: Sequence[Any]) -> Sample:
    entries, backlog, appended, pending, oldest = values
    age_ms = now_ms - journal.time_ms(oldest.decode()) if oldest else None
    return Sample(
        at_s=at_s,
        backlog_bytes=int(backlog),
        entries=entries,
        pending=int(pending),
        oldest_age_s=max(0, age_ms) / 1000 if age_ms is not None else None,
        appended_bytes=int(appended),
        stored_bytes=int(appended) - int(backlog),
    )
