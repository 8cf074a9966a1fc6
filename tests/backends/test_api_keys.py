"""Keys of the API, changed by several processes at once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest
import world

from logweir.backends import api_keys, control, provision, store
from logweir.backends.api_keys import ApiKeys, NewKey
from logweir.core import errors, keys
from logweir.core.binding import Login
from logweir.core.names import PipelineId, TenantId

DOORS = 6
_numbers = itertools.count(1)


@pytest.fixture
async def doors(spare_postgres, roots) -> AsyncIterator[list[ApiKeys]]:
    """Connections of as many processes of the role `auth`."""
    password = provision.platform_password(roots, provision.AUTH)
    server = world.store_server(spare_postgres)
    conninfo = store.conninfo(server, Login(provision.AUTH, password), "logweir test")
    made = [ApiKeys(conninfo) for _ in range(DOORS)]
    for one in made:
        await one.api_keys()  # connected, so that all begin at the same time
    yield made
    for one in made:
        await one.close()


@pytest.fixture
async def operator(spare_postgres, roots) -> AsyncIterator[control.Control]:
    made = control.Control(world.operator_conninfo(spare_postgres, roots))
    yield made
    await made.close()


@pytest.fixture
async def tenant(operator) -> control.Tenant:
    name = f"keys-{next(_numbers)}"
    return await operator.claim_tenant(TenantId(name), "c", "n", name)


def new(name: str = "web") -> NewKey:
    return NewKey(name, PipelineId(0), keys.SCOPE_INGEST, None, 0)


async def states(door: control.Control, tenant: control.Tenant) -> list[tuple[int, str, bool]]:
    """Generation, origin, and whether it is in force without an end, of each key."""
    rows = await door.api_keys_of(tenant.id)
    return sorted((one.generation, one.origin, one.revoked_at is None) for one in rows)


async def test_of_processes_that_make_one_name_at_once_one_does(doors, tenant):
    done = await asyncio.gather(
        *(one.create(tenant.id, new()) for one in doors), return_exceptions=True
    )

    assert sum(isinstance(one, control.ApiKeyRow) for one in done) == 1
    assert sum(isinstance(one, errors.ConflictError) for one in done) == DOORS - 1


async def test_processes_together_make_no_more_keys_than_may_be(doors, tenant, monkeypatch):
    monkeypatch.setattr(api_keys, "MAX_KEYS", 3)
    for _ in range(5):
        asked = [one.create(tenant.id, new(f"k{n}")) for n, one in enumerate(doors)]
        await asyncio.gather(*asked, return_exceptions=True)
        made = await states(doors[0], tenant)
        for number in range(DOORS):
            await asyncio.gather(
                *(one.revoke(tenant.id, f"k{number}", 0) for one in doors), return_exceptions=True
            )

        assert sum(is_open for _, _, is_open in made) == 3


async def test_processes_that_roll_a_key_at_once_follow_each_other(doors, tenant):
    await doors[0].create(tenant.id, new())
    rolls = [one.roll(tenant.id, "web", 0, 60, None) for one in doors]
    made = await asyncio.gather(*rolls)

    assert sorted(one.generation for one in made) == list(range(2, DOORS + 2))
    assert await states(doors[0], tenant) == [
        *((generation, "api", False) for generation in range(1, DOORS + 1)),
        (DOORS + 1, "api", True),
    ]


async def test_an_operator_that_takes_a_name_while_it_is_made_never_takes_the_key_itself(
    doors, operator, tenant
):
    for _ in range(10):
        asked = [one.create(tenant.id, new()) for one in doors]
        wanted = operator.ensure_api_key(tenant, "web", PipelineId(0), keys.SCOPE_INGEST, 1, None)
        row, *_ = await asyncio.gather(wanted, *asked, return_exceptions=True)
        found = await states(operator, tenant)
        await operator.revoke_all_api_keys(tenant.id)

        assert row.origin == "resource"
        assert [origin for _, origin, is_open in found if is_open] == ["resource"]


async def test_a_revocation_while_keys_are_rolled_leaves_one_in_force_or_none(doors, tenant):
    await doors[0].create(tenant.id, new())
    rolls = [one.roll(tenant.id, "web", 0, 60, None) for one in doors[1:]]
    await asyncio.gather(doors[0].revoke(tenant.id, "web", 0), *rolls, return_exceptions=True)
    rows = await doors[0].api_keys_of(tenant.id)

    # Who came after the revocation found no key to roll; who came before was revoked with it.
    assert [one for one in rows if not one.is_revoked] == []


async def test_a_process_that_froze_while_it_changes_keys_is_cut_off(doors, operator, tenant):
    wanted = (tenant, "web", PipelineId(0), keys.SCOPE_INGEST, 1, None)

    async def froze() -> None:
        async with doors[0]._changing_keys(tenant.id) as connection:
            await operator.ensure_api_key(*wanted)
            await connection.execute("select 1")

    with pytest.raises(errors.UnavailableError, match="idle-in-transaction"):
        await froze()
    assert await states(operator, tenant) == [(1, "resource", True)]


@pytest.mark.parametrize("end", ["revoked_at = now()", "expires_at = now()"])
async def test_a_key_that_is_not_in_force_any_more_changes_no_key(doors, operator, tenant, end):
    boss, web = [await doors[0].create(tenant.id, new(name)) for name in ("boss", "web")]
    await operator._rows(f"update logweir.api_keys set {end} where id = %s", [boss.id])
    asked = NewKey("other", PipelineId(0), keys.SCOPE_ADMIN, None, boss.id)

    for change in (
        doors[0].create(tenant.id, asked),
        doors[0].roll(tenant.id, "web", boss.id, 60, None),
        doors[0].revoke(tenant.id, "web", boss.id),
    ):
        with pytest.raises(errors.UnauthorizedError):
            await change

    rows = await doors[0].api_keys_of(tenant.id)
    assert {one.name for one in rows} == {"boss", "web"}
    assert [one.id for one in rows if one.name == "web" and not one.is_revoked] == [web.id]
