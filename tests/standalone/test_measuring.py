"""What is stored stands in an object's status, and closes ingest when it is too much."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import keeping
import pytest
import world
from keeping import ask, visit, write
from reconciling import Place, pipeline, tenant

from logweir.backends import provision, redis_client
from logweir.backends.control import Control
from logweir.core import bounds, errors, names
from logweir.core.binding import Login
from logweir.keeper import retention
from logweir.keeper.retention import Rules
from logweir.standalone import listing


@pytest.fixture(autouse=True)
def _read_at_once(monkeypatch) -> None:
    monkeypatch.setattr(bounds, "STORED_READ_S", 0.0)


@contextlib.asynccontextmanager
async def doors(place: Place) -> AsyncIterator[world.Tenant]:
    """The doors of the tenant `acme` of a place."""
    row = await place.row("acme")
    operator_control = Control(world.operator_conninfo(place.postgres, place.roots))
    pipelines = {
        one.name: one for one in await operator_control.pipelines() if one.tenant == row.id
    }
    found = world.Tenant(
        row,
        pipelines,
        place.roots,
        provision.Limits(buffer_bytes=1 << 30),
        place.postgres,
        place.valkey,
        redis_client.client(place.site.journal, Login("lw_operator", "operator")),
        operator_control,
    )
    yield found
    await found.close()


async def append(door: world.Tenant) -> object:
    """Send something, as ingest does."""
    return await door.appender().append(
        door.pipelines["web"].id,
        world.new_uuid(),
        b"x",
        accepted=1,
        size_bytes=1,
        requests=1,
        keyed=[],
    )


async def test_over_stored_bytes_nothing_is_taken_until_some_goes_or_more_is_allowed(up_place):
    quota = {"tenantId": "stored-much", "quotas": {"storedBytes": 1000}}
    await up_place.apply(tenant(**quota), pipeline())
    await up_place.passes()
    async with doors(up_place) as door:
        await write(door, 8, pipeline="web")
        await append(door)
        await visit(door).run("look", [], Rules(30))
        await up_place.passes()
        with pytest.raises(errors.OverLimitError) as refused:
            await append(door)

        await up_place.apply(tenant(**quota | {"quotas": {"storedBytes": 10**9}}))
        await up_place.passes()
        await append(door)

        await up_place.apply(tenant(**quota, retention={"bytes": 500}))
        await up_place.passes(2)
        with pytest.raises(errors.OverLimitError):
            await append(door)
        await visit(door).run("look", [], Rules(30))
        await up_place.passes()
        await append(door)

    assert refused.value.retry_after_s == bounds.STORED_LOOK_S + bounds.STORED_READ_S
    assert "quotas.storedBytes" in refused.value.hint


async def test_a_reconciler_that_starts_anew_knows_who_has_stored_too_much(up_place):
    await up_place.apply(tenant(tenantId="stored-again", quotas={"storedBytes": 1000}), pipeline())
    await up_place.passes()
    async with doors(up_place) as door:
        await write(door, 8, pipeline="web")
        await visit(door).run("look", [], Rules(30))
        await up_place.passes()

        await up_place.restart()
        await up_place.passes()
        with pytest.raises(errors.OverLimitError):
            await append(door)


async def test_a_tenant_whose_stored_bytes_cannot_be_read_stays_closed_and_holds_up_no_other(
    up_place,
):
    other = tenant("other", tenantId="stored-readable")
    await up_place.apply(
        tenant(tenantId="stored-unread", quotas={"storedBytes": 1000}), pipeline(), other
    )
    await up_place.passes()
    async with doors(up_place) as door:
        await write(door, 8, pipeline="web")
        await visit(door).run("look", [], Rules(30))
        await up_place.passes()
        of_other = (await up_place.row("other")).id
        known = (await up_place.object("LogTenant", "acme")).status["storage"]
        await ask(door, "alter table {}.storage rename column stored_bytes to gone")
        await ask(door, f"update {names.schema(of_other)}.storage set stored_bytes = 17")

        for _ in range(2):
            await up_place.passes()
            with pytest.raises(errors.OverLimitError):
                await append(door)
            still_known = (await up_place.object("LogTenant", "acme")).status.get("storage")
            others = (await up_place.object("LogTenant", "other")).status["storage"]
            assert (still_known, others) == (known, {"storedBytes": 17})
        await up_place.restart()
        await up_place.passes()
        with pytest.raises(errors.OverLimitError):
            await append(door)


async def test_the_status_says_what_is_stored_and_what_goes_next(up_place):
    oldest = datetime.now(UTC).replace(microsecond=0) - timedelta(days=5)
    await up_place.apply(tenant(tenantId="stored-status"), pipeline())
    await up_place.passes()
    empty = (await up_place.object("LogTenant", "acme")).status["storage"]
    async with doors(up_place) as door:
        await write(door, 3, pipeline="web", timestamp=int(oldest.timestamp()))
        await visit(door).run("upkeep", [], Rules(30))
        stored_bytes = (await keeping.keeper_store(door).storage()).stored_bytes
    await up_place.passes()

    found = (await up_place.object("LogTenant", "acme")).status["storage"]
    table = listing.text(await up_place.control.objects(), "lt", "default", "acme", "")
    heads, line = (re.split(" {2,}", one) for one in table.splitlines())
    assert empty == {"storedBytes": 0}
    assert found["storedBytes"] == stored_bytes > 0
    assert datetime.fromisoformat(found["oldestRecord"]) == oldest
    late = datetime.fromisoformat(found["nextDrop"]) - oldest - timedelta(days=30)
    assert timedelta(0) <= late <= timedelta(days=30 / retention.WAIT_SHARE)
    shown = dict(zip(heads, line, strict=True))
    assert shown["STORED"].endswith("B")
    assert shown["OLDEST"] == "5d"
    assert 24 <= int(shown["NEXT-DROP"].removesuffix("d")) <= 32
