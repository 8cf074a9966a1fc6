"""What `up` says of the collectors that its pipelines should have, from real journals."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
import world
from reconciling import Place, pipeline, tenant
from redis import asyncio as redis

from logweir.backends import journal, provision
from logweir.core import names
from logweir.core.binding import JournalServer, Login
from logweir.standalone import collectors, servers
from logweir.standalone.folder import read_json

HUNGRY = {"autoscaling": {"targetBacklogBytes": 1 << 16}}


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch) -> None:
    monkeypatch.setattr(collectors, "cores", lambda: 2)


async def append(place: Place, name: str, size: int) -> None:
    """Put so many bytes into the journal of the pipeline `web`, as ingest does."""
    row = await place.row(name)
    [web] = [one for one in await place.control.pipelines() if one.tenant == row.id]
    user = names.redis_user(row.id, "in")
    login = Login(user, provision.journal_password(place.roots, row, user))
    server = JournalServer(servers.LOOPBACK, place.valkey.port)
    appender = journal.Appender(server, login, row.id)
    block = secrets.token_bytes(size)
    await appender.append(
        web.id, world.new_uuid(), block, accepted=1, size_bytes=size, requests=1, keyed=[]
    )
    await appender.close()


async def look(place: Place) -> None:
    """One look at the journals, and the pass that writes down what came of it."""
    await place.cluster._scaling._scaler._look()
    await place.passes()


async def conditions(place: Place) -> dict[str, Any]:
    found = await place.object("LogPipeline", "web")
    return {one["type"]: one for one in found.status["conditions"]}


@pytest.mark.parametrize(
    ("limit", "by"),
    [(20, "this machine allows 2."), (2, "the tenant's postgres.connectionLimit allows 1.")],
)
async def test_what_allows_no_more_collectors_is_said(up_place, limit, by):
    spec = {"tenantId": f"node-{limit}", "postgres": {"connectionLimit": limit}}
    await up_place.apply(tenant(**spec), pipeline(collector=HUNGRY))
    await up_place.passes()
    await append(up_place, "acme", 1 << 19)
    await look(up_place)

    found = (await conditions(up_place))["ScalingActive"]
    wanted = read_json(up_place.folder.collectors, collectors.Wanted).replicas
    assert found["reason"] == "AtMaximum"
    assert found["message"] == f"8 collectors would do, but {by}"
    assert wanted == int(by[-2])


async def test_while_the_journal_is_away_nobody_knows_whether_records_are_fresh(
    up_place, monkeypatch
):
    by_hand = {"replicas": 1, "autoscaling": {"driver": "None"}}
    await up_place.apply(tenant(tenantId="node-away"), pipeline(collector=by_hand))
    await up_place.passes()
    await look(up_place)
    before = (await conditions(up_place))["Fresh"]["reason"]

    scaler = up_place.cluster._scaling._scaler
    async with redis.Redis(port=1) as nobody:  # nothing listens there
        monkeypatch.setattr(scaler, "_journal", nobody)
        scaler._due_s.clear()
        await look(up_place)
    after = await conditions(up_place)

    assert (before, after["Fresh"]["reason"]) == ("WithinGoal", "Unknown")
    assert after["ScalingActive"]["reason"] == "Manual"
