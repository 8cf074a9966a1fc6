"""Five times more than there is room for: no collapse, honest refusals, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import builders
import httpx2
import msgspec
import psycopg
import pytest
from chaos.ramping import Ramp, Result, Step
from chaos.standing import Up, running

from logweir.core import columns, segment
from logweir.core.names import TenantId

STORED_S = 20.0
OVER = 5
POLITE = 0.8
POLITE_S = 1.5
STEP_S = 0.7
HOLD_S = 3.0

RECORDS_PER_S = 2000
RECORDS = 50
BUFFER_BYTES = 1 << 20
NOISE_BYTES = 200_000
NOISE = bytes(b"!#$%&()*+,/:;<=>?@[]^_`{|}~ "[byte % 28] for byte in range(256))
"""Text that hardly compresses, and has no words to look for."""

BUFFERS_PER_S = 28.0
"""Requests of so much noise that fill the buffer as fast as a collector drains it, or faster."""

TENANT = """
apiVersion: logweir.dev/v1alpha1
kind: LogTenant
metadata: {{name: {name}}}
spec:
  tenantId: {name}
  quotas: {quotas}
  apiKeys: [{{name: ingest, scopes: [ingest]}}]
---
apiVersion: logweir.dev/v1alpha1
kind: LogPipeline
metadata: {{name: {name}}}
spec: {{tenantRef: {{name: {name}}}, slo: {{queryableWithinSeconds: 1}}}}
"""


class Pipeline(msgspec.Struct, frozen=True):
    """Where a tenant's records go."""

    tenant: TenantId
    url: str
    key: str


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    with running() as found:
        yield found
    found.remove()


def command(up: Up, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "logweir.cli", *words, "--data", str(up.folder / "data")],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


async def make(up: Up, name: str, **quotas: int) -> Pipeline:
    """Apply a tenant with these quotas, and wait until its pipeline is served."""
    text = TENANT.format(name=name, quotas=json.dumps(quotas))
    applied = await asyncio.to_thread(command, up, "apply", "-f", "-", given=text)
    assert applied.returncode == 0, applied.stderr
    async with asyncio.timeout(30):
        while True:
            ran = await asyncio.to_thread(command, up, "get", "keys", name)
            found = json.loads(ran.stdout) if ran.returncode == 0 else {}
            if found.get("pipelines") and await takes(found):
                break
            await asyncio.sleep(0.2)
    return Pipeline(TenantId(name), address(found), found["keys"]["ingest"])


def address(keys: dict[str, Any]) -> str:
    return f"{keys['url']}/{keys['name']}/ingest"


async def takes(keys: dict[str, Any]) -> bool:
    """Whether ingest knows the key: then it says what is wrong with an empty body."""
    headers = {"Authorization": f"Bearer {keys['keys']['ingest']}"}
    async with httpx2.AsyncClient(headers=headers, trust_env=False) as client:
        return (await client.post(address(keys))).status_code == 400


def steps(base_per_s: float) -> list[Step]:
    """What there is room for, a ramp to five times of it, and a while at the top."""
    return [
        Step(0.5 * base_per_s, POLITE_S),
        Step(POLITE * base_per_s, POLITE_S),
        *(Step(times * base_per_s, STEP_S) for times in range(1, OVER)),
        Step(OVER * base_per_s, HOLD_S),
    ]


async def stored(up: Up, tenant: TenantId, count: int) -> Counter[str]:
    """The messages in the store, once there are so many, or time is up."""
    deadline_s = time.monotonic() + STORED_S
    with psycopg.connect(up.superuser(tenant), autocommit=True) as connection:
        while time.monotonic() < deadline_s:
            [(found,)] = connection.execute("select coalesce(sum(n), 0) from segments").fetchall()
            if found >= count:
                break
            await asyncio.sleep(0.1)
        fields = ", ".join(segment.Segment.__struct_fields__)
        rows = connection.execute(f"select {fields} from segments").fetchall()
    found = [segment.decode(segment.Segment(*row)) for row in rows]
    return Counter(text.decode() for one in found for text in columns.split(one.message, one.n))


def check_answers(result: Result) -> str:
    """Refusals are honest, and all is acknowledged once in the end; returns the figures."""
    refusals = [one for one in result.answers if one.status != 200]
    told = {one.retry_after for one in refusals}
    last_s = max(one.at_s for one in result.answers)
    text = (
        f"answers {dict(result.statuses())}, Retry-After {sorted(told)},"
        f" all {result.sent} in after {last_s:.1f} s"
    )
    assert set(result.statuses()) <= {200, 429, 503}, text
    assert all(one.isdigit() and 1 <= int(one) <= 60 for one in told), text
    assert result.acked == Counter(range(result.sent)), text
    return text


def check(result: Result, base_per_s: float, peak_per_s: float = 0.0) -> str:
    """What was promised of a ramp; returns the figures. The peak is known, or what was seen."""
    ramp_s = 2 * POLITE_S
    top_s = ramp_s + (OVER - 1) * STEP_S
    once_per_s = result.accepted_per_s(POLITE_S, ramp_s)
    ramp_per_s = result.accepted_per_s(ramp_s, top_s)
    held_per_s = result.accepted_per_s(top_s, top_s + HOLD_S)
    # Not the ramp's own: there what was saved up, or an empty buffer, is spent besides.
    peak_per_s = peak_per_s or max(once_per_s, held_per_s)
    text = (
        f"offered {OVER * base_per_s:.0f}/s, accepted {once_per_s:.1f}/s before the ramp,"
        f" {ramp_per_s:.1f}/s in it, {held_per_s:.1f}/s at the top"
        f" ({held_per_s / peak_per_s:.0%} of {peak_per_s:.1f}/s), {check_answers(result)}"
    )
    assert base_per_s >= 0.95 * peak_per_s, text
    assert held_per_s >= 0.9 * peak_per_s, text
    return text


async def quota_ramp(pipeline: Pipeline, up: Up) -> str:
    """Five times the tenant's records a second."""
    peak_per_s = RECORDS_PER_S / RECORDS

    def body(number: int) -> bytes:
        return msgspec.json.encode([builders.record(f"{number} {at}") for at in range(RECORDS)])

    result = await Ramp(pipeline.url, pipeline.key, body, 1).run(steps(peak_per_s))
    text = check(result, peak_per_s, peak_per_s)
    found = await stored(up, pipeline.tenant, result.sent * RECORDS)
    assert found == Counter(f"{n} {at}" for n in range(result.sent) for at in range(RECORDS))
    return text


async def buffer_ramp(pipeline: Pipeline, up: Up) -> str:
    """Five times what a collector drains of a small buffer."""

    def body(number: int) -> bytes:
        return msgspec.json.encode(builders.record(message(number)))

    result = await Ramp(pipeline.url, pipeline.key, body, 2).run(steps(BUFFERS_PER_S))
    text = check(result, BUFFERS_PER_S)
    found = await stored(up, pipeline.tenant, result.sent)
    assert found == Counter(map(message, range(result.sent)))
    return text


def message(number: int) -> str:
    """A text of its number, that hardly compresses."""
    noise = random.Random(number).randbytes(NOISE_BYTES).translate(NOISE)
    return f"{number} {noise.decode()}"


async def memory_ramp(up: Up, pipeline: Pipeline) -> str:
    """A journal without room, for a while in the middle of the load."""

    def body(number: int) -> bytes:
        return msgspec.json.encode(builders.record(f"m {number}"))

    journal = up.journal()
    room = (await journal.config_get("maxmemory"))["maxmemory"]
    ramp = asyncio.create_task(Ramp(pipeline.url, pipeline.key, body, 3).run([Step(50, 4.0)]))
    await asyncio.sleep(1)
    await journal.config_set("maxmemory", "1mb")
    await asyncio.sleep(1.5)
    await journal.config_set("maxmemory", room)
    result = await ramp
    await journal.aclose()
    text = check_answers(result)
    assert result.statuses()[503] > 10, text
    found = await stored(up, pipeline.tenant, result.sent)
    assert found == Counter(f"m {number}" for number in range(result.sent))
    return text


@pytest.mark.chaos
async def test_five_times_too_much_collapses_nothing_and_loses_nothing(up, capsys):
    quota = await make(up, "quota", recordsPerSecond=RECORDS_PER_S)
    buffer = await make(up, "buffer", bufferBytes=BUFFER_BYTES)

    texts = await asyncio.gather(quota_ramp(quota, up), buffer_ramp(buffer, up))

    with capsys.disabled():
        print("\nquota:", texts[0], "\nbuffer:", texts[1])


@pytest.mark.chaos
async def test_a_journal_without_room_answers_503_and_loses_nothing(up, capsys):
    pipeline = await make(up, "memory")

    text = await memory_ramp(up, pipeline)

    with capsys.disabled():
        print("\nmemory:", text)
