"""The control schema: identities, keys, objects and leases, over a connection that may break."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import world

from logweir.backends import control, provision
from logweir.backends.control import Control, IdentityClaimedError
from logweir.core import errors, keys, states
from logweir.core.names import PipelineId, TenantId

_numbers = itertools.count(1)
ALL = PipelineId(0)


@pytest.fixture
async def door(spare_postgres, roots) -> AsyncIterator[Control]:
    made = Control(world.operator_conninfo(spare_postgres, roots))
    yield made
    await made.close()


@pytest.fixture
async def other_door(spare_postgres, roots) -> AsyncIterator[Control]:
    made = Control(world.operator_conninfo(spare_postgres, roots))
    yield made
    await made.close()


def fresh(what: str = "name") -> str:
    return f"{what}-{next(_numbers)}"


async def claim(door: Control, tenant: str = "", **of: str) -> control.Tenant:
    """Claim an id for an object, both new unless they are named."""
    tenant = tenant or fresh("tenant")
    place = {"cluster": "c", "namespace": "n", "name": tenant} | of
    return await door.claim_tenant(TenantId(tenant), **place)


async def key(door: Control, tenant: control.Tenant, **fields: Any) -> control.ApiKeyRow:
    what = {
        "name": "main",
        "pipeline": ALL,
        "scopes": keys.SCOPE_QUERY,
        "generation": 1,
        "expires_at": None,
    } | fields
    return await door.ensure_api_key(tenant, **what)


async def keys_of(door: Control, tenant: control.Tenant) -> list[tuple[int, bool]]:
    """The ids of the tenant's keys, sorted, and whether each is good."""
    found = [one for one in await door.api_keys() if one.tenant == tenant.id]
    return sorted((one.id, one.revoked_at is None) for one in found)


# Identities


async def test_an_object_claims_an_id_and_keeps_it(door):
    first = await claim(door)
    again = await claim(door, first.id)

    assert first == again
    assert first.state == "provisioning"
    assert first.id in [one.id for one in await door.tenants()]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"name": "other"}, id="another name"),
        pytest.param({"namespace": "other"}, id="another namespace"),
        pytest.param({"cluster": "other"}, id="another cluster"),
    ],
)
async def test_an_id_of_another_object_is_refused(door, other):
    first = await claim(door)

    with pytest.raises(IdentityClaimedError, match=first.id):
        await claim(door, first.id, **{"name": first.name} | other)


async def test_a_retired_id_is_refused_to_every_object_and_its_own(door):
    first = await claim(door)
    await door.move_tenant(first.id, first.state, "deleted")

    for name in ("other", first.name):
        with pytest.raises(IdentityClaimedError, match="is retired") as refused:
            await claim(door, first.id, name=name)
        assert "release" in refused.value.hint
    assert first.id not in [one.id for one in await door.tenants()]


async def test_a_released_id_may_be_claimed_by_any_object_once(door):
    first = await claim(door)
    await door.move_tenant(first.id, first.state, "deleted")
    released = [await door.release_tenant_id(first.id) for _ in range(2)]
    second = await claim(door, first.id, name=fresh())

    assert released == [True, True]
    assert (second.id, second.state) == (first.id, "provisioning")
    assert await door.release_tenant_id(first.id) is False
    with pytest.raises(IdentityClaimedError):
        await claim(door, first.id)


async def test_an_id_of_a_tenant_that_is_there_is_not_released(door):
    first = await claim(door)
    await door.move_tenant(first.id, first.state, "retained")

    assert await door.release_tenant_id(first.id) is False
    assert await door.release_tenant_id(TenantId("never-seen")) is False
    assert (await claim(door, first.id)).name == first.name


async def test_a_name_that_is_used_again_after_a_deletion_has_a_new_id(door):
    first = await claim(door)
    await door.move_tenant(first.id, first.state, "deleted")
    second = await claim(door, fresh("tenant"), name=first.name)
    again = await claim(door, first.id, name=first.name)

    assert second.id != first.id
    assert again == second


async def test_a_tenant_that_was_kept_is_its_object_s_still_and_no_other_s(door):
    first = await claim(door)
    await door.move_tenant(first.id, first.state, "retained")
    kept = await claim(door, fresh("tenant"), name=first.name)
    await door.adopt_tenant(first.id)
    adopted = await claim(door, first.id)

    assert (kept.id, kept.state) == (first.id, "retained")
    assert (adopted.id, adopted.state) == (first.id, "provisioning")
    with pytest.raises(IdentityClaimedError, match=first.id):
        await claim(door, first.id, name="other")


@pytest.mark.parametrize("end", ["retained", "deleted"])
async def test_after_its_end_an_id_has_other_secrets(door, end):
    first = await claim(door)
    await door.move_tenant(first.id, first.state, end)
    with pytest.raises(control.TenantMovedError):
        await door.move_tenant(first.id, first.state, end)
    await door.release_tenant_id(first.id)
    again = await claim(door, first.id)

    for one in ("writer", "reader", "keeper", "redis"):
        assert getattr(again, f"{one}_revision") == getattr(first, f"{one}_revision") + 1
    for one in ("ingest", "access"):  # ingest may have been told of the next one
        assert getattr(again, f"{one}_revision") == getattr(first, f"{one}_revision") + 2


@pytest.mark.parametrize("state", states.LEAVING)
async def test_a_tenant_that_is_leaving_is_waited_for(door, state):
    first = await claim(door)
    await door.move_tenant(first.id, first.state, state)
    await door.set_tenant(first.id, "active", 30, {})

    with pytest.raises(control.TenantLeavingError, match=state):
        await claim(door, first.id)


async def test_of_two_that_move_a_tenant_at_once_one_does(door, other_door):
    first = await claim(door)
    moves = [
        one.move_tenant(first.id, first.state, "refusing", lost_blocks=1)
        for one in [door, other_door] * 4
    ]
    done = await asyncio.gather(*moves, return_exceptions=True)
    [found] = [one for one in await door.tenants() if one.id == first.id]

    assert sorted(type(one).__name__ for one in done) == ["NoneType", *["TenantMovedError"] * 7]
    assert (found.state, found.lost_blocks) == ("refusing", 1)


async def test_of_two_objects_that_claim_one_id_at_once_one_has_it(door, other_door):
    tenant = fresh("tenant")
    claims = [
        claim(one, tenant, name=f"{tenant}-{number}")
        for number, one in enumerate([door, other_door] * 4)
    ]
    done = await asyncio.gather(*claims, return_exceptions=True)

    assert sum(isinstance(one, control.Tenant) for one in done) == 1
    assert sum(isinstance(one, IdentityClaimedError) for one in done) == 7


async def test_what_the_operator_decides_of_a_tenant_is_kept(door):
    tenant = await claim(door)
    await door.set_tenant(tenant.id, "active", 7, {"displayName": "Acme"})

    [found] = [one for one in await door.tenants() if one.id == tenant.id]
    assert (found.state, found.retention_days, found.spec) == (
        "active",
        7,
        {"displayName": "Acme"},
    )


# Pipelines


async def test_a_pipeline_keeps_its_id_and_takes_a_new_spec(door):
    tenant = await claim(door)
    first = await door.ensure_pipeline(tenant.id, "web", 30, {"labels": []})
    again = await door.ensure_pipeline(tenant.id, "web", 7, {"labels": ["a"]})

    assert again.id == first.id
    assert (again.retention_days, again.spec) == (7, {"labels": ["a"]})


async def test_the_id_of_a_deleted_pipeline_is_never_used_again(door):
    tenant = await claim(door)
    first = await door.ensure_pipeline(tenant.id, "web", 30, {})
    await door.delete_pipeline(first.id)
    again = await door.ensure_pipeline(tenant.id, "web", 30, {})

    assert again.id > first.id
    assert [one.id for one in await door.pipelines() if one.tenant == tenant.id] == [again.id]


async def test_two_tenants_may_have_pipelines_of_one_name(door):
    tenants = [await claim(door) for _ in range(2)]
    made = [await door.ensure_pipeline(one.id, "web", 30, {}) for one in tenants]

    assert made[0].id != made[1].id


# API keys


async def test_a_key_asked_for_again_is_the_same_key(door):
    tenant = await claim(door)
    first = await key(door, tenant)
    again = await key(door, tenant)

    assert first == again


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"generation": 2}, id="a roll"),
        pytest.param({"scopes": keys.SCOPE_QUERY | keys.SCOPE_ADMIN}, id="other scopes"),
        pytest.param({"pipeline": PipelineId(4)}, id="another pipeline"),
    ],
)
async def test_a_changed_key_is_a_new_one_and_the_old_is_revoked(door, change):
    tenant = await claim(door)
    old = await key(door, tenant)
    new = await key(door, tenant, **change)

    assert await keys_of(door, tenant) == sorted([(old.id, False), (new.id, True)])


async def test_a_key_that_is_to_expire_earlier_is_a_new_one(door):
    tenant = await claim(door)
    day = datetime(2040, 1, 1, tzinfo=UTC)
    never = await key(door, tenant)
    late = await key(door, tenant, expires_at=day)
    early = await key(door, tenant, expires_at=day - timedelta(days=1))

    expected = [(never.id, False), (late.id, False), (early.id, True)]
    assert await keys_of(door, tenant) == sorted(expected)


async def test_a_key_that_may_live_longer_stays_and_has_another_text(door):
    tenant = await claim(door)
    day = datetime(2040, 1, 1, tzinfo=UTC)
    early = await key(door, tenant, expires_at=day)
    late = await key(door, tenant, expires_at=day + timedelta(days=1))
    never = await key(door, tenant)

    assert early.id == late.id == never.id
    assert late.key().expires_at_s == early.key().expires_at_s + 86_400
    assert never.key().expires_at_s == 0


async def test_a_key_that_is_to_live_longer_than_its_text_can_say_ends_with_that(door):
    late = await key(door, await claim(door), expires_at=datetime(9999, 1, 1, tzinfo=UTC))

    assert late.key().expires_at_s == (1 << 32) - 1
    assert keys.text_of(late.key(), bytes(32)).startswith("lwa_")


async def test_a_key_has_the_revision_of_its_class(door):
    tenant = await claim(door)
    await door.move_tenant(tenant.id, tenant.state, "retained")
    tenant = await claim(door, tenant.id)
    ingest = await key(door, tenant, scopes=keys.SCOPE_INGEST)

    assert ingest.key().revision == tenant.ingest_revision == 3
    assert ingest.key().is_ingest


async def test_keys_that_are_not_kept_are_revoked(door):
    tenant, other = await claim(door), await claim(door)
    kept, gone = await key(door, tenant), await key(door, tenant, name="gone")
    untouched = await key(door, other, name="gone")
    await door.revoke_api_keys(tenant.id, ["main"])

    assert await keys_of(door, tenant) == sorted([(kept.id, True), (gone.id, False)])
    assert await keys_of(door, other) == [(untouched.id, True)]


async def test_a_name_that_was_revoked_may_have_a_key_again(door):
    tenant = await claim(door)
    old = await key(door, tenant)
    await door.revoke_api_keys(tenant.id, [])
    new = await key(door, tenant)

    assert await keys_of(door, tenant) == sorted([(old.id, False), (new.id, True)])


async def test_two_that_ask_for_one_key_at_once_get_the_same(door, other_door):
    tenant = await claim(door)
    made = await asyncio.gather(*(key(one, tenant) for one in [door, other_door] * 4))

    assert len({one.id for one in made}) == 1


async def test_the_keys_and_pipelines_of_a_deleted_tenant_go(door):
    tenant = await claim(door)
    await key(door, tenant)
    await door.ensure_pipeline(tenant.id, "web", 30, {})
    await door.move_tenant(tenant.id, tenant.state, "deleted")
    pipelines = await door.pipelines(with_deleted=True)

    assert await keys_of(door, tenant) == []
    assert [one for one in pipelines if one.tenant == tenant.id] == []


# Objects


async def test_a_generation_grows_when_the_spec_changes_and_only_then(door):
    name = fresh()
    specs = [{"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2}, {"a": 2}, {"a": 1, "b": 2}]
    made = [await door.apply_object("LogTenant", "n", name, spec) for spec in specs]

    assert [one.generation for one in made] == [1, 1, 2, 2, 3]


async def test_a_file_s_hash_is_no_part_of_the_spec(door):
    name = fresh()
    await door.apply_object("LogTenant", "n", name, {}, source="a.yaml", source_hash="1")
    found = await door.apply_object("LogTenant", "n", name, {}, source="a.yaml", source_hash="2")

    assert (found.generation, found.source_hash) == (1, "2")


async def test_a_deletion_is_asked_for_once_and_finished_by_a_purge(door):
    name = fresh()
    await door.apply_object("LogTenant", "n", name, {})
    asked = [await door.delete_object("LogTenant", "n", name) for _ in range(2)]
    marked = [one for one in await door.objects() if one.name == name]
    await door.purge_object("LogTenant", "n", name)

    assert asked == [True, False]
    assert marked[0].deleted_at is not None
    assert [one for one in await door.objects() if one.name == name] == []


async def test_an_object_that_is_not_being_deleted_is_not_purged(door):
    name = fresh()
    await door.apply_object("LogTenant", "n", name, {})
    await door.purge_object("LogTenant", "n", name)

    assert [one.name for one in await door.objects() if one.name == name] == [name]


async def test_what_is_not_there_cannot_be_deleted(door):
    assert await door.delete_object("LogTenant", "n", fresh()) is False


async def test_a_status_is_written_and_leaves_the_generation(door):
    name = fresh()
    await door.apply_object("LogTenant", "n", name, {})
    await door.set_object_status("LogTenant", "n", name, {"phase": "Ready"})

    [found] = [one for one in await door.objects() if one.name == name]
    assert (found.status, found.generation) == ({"phase": "Ready"}, 1)


# Leases


async def test_a_lease_has_one_holder(door, other_door):
    name = fresh("lease")

    assert await door.take_lease(name, "a", 60)
    assert not await other_door.take_lease(name, "b", 60)


async def test_a_holder_renews_its_lease(door, other_door):
    name = fresh("lease")
    await door.take_lease(name, "a", 0)
    renewed = await door.take_lease(name, "a", 60)

    assert renewed
    assert not await other_door.take_lease(name, "b", 60)


async def test_a_lease_that_ran_out_is_free(door, other_door):
    name = fresh("lease")
    await door.take_lease(name, "a", 0)

    assert await other_door.take_lease(name, "b", 60)
    assert not await door.take_lease(name, "a", 60)


async def test_of_many_that_want_a_lease_at_once_one_gets_it(door, other_door):
    name = fresh("lease")
    wanting = [
        one.take_lease(name, f"holder {number}", 60)
        for number, one in enumerate([door, other_door] * 5)
    ]

    assert sum(await asyncio.gather(*wanting)) == 1


async def test_the_keeper_may_take_leases(spare_postgres, roots):
    login = provision.KEEPER
    conninfo = psycopg.conninfo.make_conninfo(
        world.operator_conninfo(spare_postgres, roots),
        user=login,
        password=provision.platform_password(roots, login),
    )
    keeper = Control(conninfo)
    taken = await keeper.take_lease(fresh("lease"), "keeper", 60)
    await keeper.close()

    assert taken


# The connection


def end_sessions(postgres, application: str = "logweir test") -> None:
    with psycopg.connect(postgres.url()) as connection:
        query = (
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where application_name = %s"
        )
        connection.execute(query, [application])


async def test_a_broken_connection_is_told_once_and_opened_again(door, spare_postgres):
    await door.tenants()
    end_sessions(spare_postgres)

    with pytest.raises(errors.UnavailableError):
        await door.tenants()
    assert isinstance(await door.tenants(), list)


async def test_a_server_that_is_away_is_told_and_used_when_it_is_back(
    door, spare_postgres, servers_folder
):
    await door.tenants()
    spare_postgres.stop()
    try:
        for _ in range(3):
            with pytest.raises(errors.UnavailableError):
                await door.tenants()
    finally:
        spare_postgres.start(servers_folder / "spare.log")

    assert isinstance(await door.tenants(), list)


async def test_a_statement_that_takes_too_long_does_not_spoil_the_next(
    door, spare_postgres, monkeypatch
):
    name = fresh("lease")
    await door.take_lease(name, "a", 60)
    monkeypatch.setattr(control, "STATEMENT_TIMEOUT_S", 0.2)
    with psycopg.connect(spare_postgres.url(database=provision.DATABASE)) as blocker:
        blocker.execute("lock table logweir.leases in access exclusive mode")
        with pytest.raises(errors.UnavailableError):
            await door.take_lease(name, "a", 60)

    assert await door.take_lease(name, "a", 60)


async def test_a_caller_that_gives_up_does_not_spoil_the_next(door, spare_postgres):
    name = fresh("lease")
    await door.take_lease(name, "a", 60)
    with psycopg.connect(spare_postgres.url(database=provision.DATABASE)) as blocker:
        blocker.execute("lock table logweir.leases in access exclusive mode")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(door.take_lease(name, "a", 60), 0.2)

    assert await door.take_lease(name, "a", 60)


async def test_what_a_login_may_not_do_is_an_error_of_the_platform(spare_postgres, roots):
    login = provision.QUERY
    conninfo = psycopg.conninfo.make_conninfo(
        world.operator_conninfo(spare_postgres, roots),
        user=login,
        password=provision.platform_password(roots, login),
    )
    reader = Control(conninfo)
    try:
        with pytest.raises(errors.UnavailableError, match="permission denied"):
            await reader.objects()
        assert isinstance(await reader.tenants(), list)
    finally:
        await reader.close()


async def test_many_tasks_share_one_door(door):
    names = [fresh("lease") for _ in range(50)]
    taken = await asyncio.gather(*(door.take_lease(name, "a", 60) for name in names))

    assert all(taken)


async def test_a_closed_door_may_be_used_again(door):
    await door.tenants()
    await door.close()

    assert isinstance(await door.tenants(), list)


async def test_of_several_objects_all_are_written_or_none(door):
    first, leaving = fresh(), fresh()
    await door.apply_object("LogTenant", "n", leaving, {})
    await door.delete_object("LogTenant", "n", leaving)

    with pytest.raises(control.ObjectLeavingError, match="is being deleted"):
        await door.apply_objects([("LogTenant", "n", first, {}), ("LogTenant", "n", leaving, {})])

    assert [one.name for one in await door.objects() if one.name == first] == []
