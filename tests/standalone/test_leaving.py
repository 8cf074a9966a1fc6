"""A tenant's life in the servers: read-only, refused, drained, sealed, kept, adopted, dropped."""

from __future__ import annotations

import asyncio
import logging

import psycopg
import pytest
from reconciling import (
    Place,
    append,
    append_records,
    appender,
    drain,
    made,
    only_pipeline,
    pipeline,
    records_in,
    tenant,
)

from logweir.backends import deprovision, provision, store
from logweir.core import errors, keys, names
from logweir.core.binding import Login
from logweir.core.names import TenantId
from logweir.standalone import objects
from logweir_operator import life, making

DELETE = {"deletionPolicy": "Delete"}


def schemas(place: Place, of: TenantId) -> list[str]:
    found = place.sql(
        "select nspname from pg_namespace where nspname like %s", "%" + names.schema(of)
    )
    return [name for (name,) in found]


async def state(place: Place, of: TenantId) -> str:
    [[found]] = place.sql("select state from logweir.tenants where id = %s", of)
    return found


async def read_records(place: Place, of: TenantId) -> int:
    """Records of a tenant, counted with the login that queries have."""
    [row] = [one for one in await place.control.tenants() if one.id == of]
    login = Login(*provision.tenant_password(place.roots, row, "r"))
    with psycopg.connect(store.conninfo(place.site.store, login, "test")) as connection:
        [count] = connection.execute("select coalesce(sum(n), 0)::int from segments").fetchone()
    return count


async def is_left(place: Place, of: TenantId) -> list[object]:
    """All that the servers still have of a tenant."""
    journal = place.cluster._journal
    schema = names.schema(of)
    return [
        *schemas(place, of),
        *place.sql("select rolname from pg_roles where rolname like %s", schema + "\\_%"),
        *[one for one in await journal.acl_users() if of in one],
        *await journal.keys(names.journal_tenant(of) + "*"),
        *[one for one in await place.control.api_keys() if one.tenant == of],
        *[o for o in await place.control.pipelines(with_deleted=True) if o.tenant == of],
    ]


async def delete_all(place: Place, name: str = "acme", *pipelines: str) -> None:
    """Ask for the deletion of a tenant and its pipelines."""
    for one in pipelines or ("web",):
        await place.delete("LogPipeline", one)
    await place.delete("LogTenant", name)


async def is_gone(place: Place, name: str = "acme", passes: int = 4) -> bool:
    await place.passes(passes)
    return await place.object("LogTenant", name) is None


# ---- read-only ------------------------------------------------------------------------------


async def test_a_read_only_tenant_refuses_records_drains_and_can_be_read(up_place):
    of = await made(up_place, tenant(), pipeline())
    await append_records(up_place, of, 2)
    to, door = await only_pipeline(up_place, of), appender(up_place, of)
    await up_place.apply(tenant(readOnly=True))
    await up_place.passes()

    with pytest.raises(errors.ForbiddenError):
        await append(door, of, to)
    await drain(up_place, of)
    assert await state(up_place, of) == "readonly"
    assert await read_records(up_place, of) == 2

    await up_place.apply(tenant())
    await up_place.passes()
    await append(door, of, to)
    await door.close()
    assert await state(up_place, of) == "active"


# ---- refusing, draining ---------------------------------------------------------------------


async def test_a_tenant_that_is_deleted_refuses_records_and_keys_at_once(up_place):
    of = await made(up_place, tenant(), pipeline())
    await append_records(up_place, of, 1)
    to, door = await only_pipeline(up_place, of), appender(up_place, of)
    await delete_all(up_place)
    await up_place.passes()

    with pytest.raises(errors.ForbiddenError):
        await append(door, of, to)
    await door.close()
    rows = [one for one in await up_place.control.api_keys() if one.tenant == of]
    assert [one.name for one in rows if one.revoked_at is None] == []
    assert await state(up_place, of) == "draining"
    assert (up_place.served(), up_place.drained()) == ([], ["web"])


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
async def test_nothing_is_taken_away_before_the_journal_is_drained(up_place, policy):
    of = await made(up_place, tenant(deletionPolicy=policy), pipeline())
    await append_records(up_place, of, 3)
    await delete_all(up_place)
    await up_place.passes(3)

    assert await up_place.ready("LogTenant", "acme") == ("False", "Deleting")
    assert (await up_place.message("LogTenant", "acme")).startswith(
        "draining: 3 blocks with 3 records are not stored yet;"
    )
    await drain(up_place, of)
    assert records_in(up_place, of) == 3
    assert await is_gone(up_place)
    assert schemas(up_place, of) == ([names.schema(of)] if policy == "Retain" else [])


async def test_collectors_leave_a_tenant_before_it_is_closed_to_them(up_place):
    of = await made(up_place, tenant(), pipeline())
    await delete_all(up_place)
    await up_place.passes()

    assert up_place.drained() == []
    assert await up_place.message("LogTenant", "acme") == "sealed: its collectors leave it."
    assert names.redis_user(of, "col") in await up_place.cluster._journal.acl_users()
    assert await is_gone(up_place)


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
async def test_what_cannot_be_stored_is_given_up_counted_and_said(
    up_place, monkeypatch, caplog, policy
):
    of = await made(up_place, tenant(deletionPolicy=policy), pipeline())
    await append_records(up_place, of, 3)
    await delete_all(up_place)
    await up_place.passes()
    monkeypatch.setattr(life, "DRAIN_PATIENCE_S", 0.0)
    with caplog.at_level(logging.WARNING):
        await up_place.passes()

    assert await up_place.message("LogTenant", "acme") == (
        "sealed: its collectors leave it. 3 blocks with 3 records are not stored and given up."
    )
    [said] = [one for one in caplog.records if one.message == "journal given up"]
    assert (said.tenant, said.blocks, said.records) == (of, 3, 3)
    assert await is_gone(up_place)
    lost = "select lost_blocks, lost_records from logweir.tenants where id = %s"
    assert up_place.sql(lost, of) == [(3, 3)]


async def test_pipelines_of_a_tenant_that_is_sealed_are_gone_as_well(up_place, monkeypatch):
    of = await made(up_place, tenant(), pipeline())
    await append_records(up_place, of, 1)
    await delete_all(up_place)
    monkeypatch.setattr(life, "DRAIN_PATIENCE_S", 0.0)
    await up_place.passes(3)

    assert await up_place.control.objects() == []
    assert await up_place.cluster._journal.keys(names.journal_tenant(of) + "*") == []


async def test_a_tenant_whose_pipelines_nobody_has_deleted_stays_as_it_is(up_place):
    of = await made(up_place, tenant(), pipeline())
    await up_place.control.delete_object("LogTenant", "default", "acme")  # as by force
    await up_place.passes(2)

    assert await up_place.message("LogTenant", "acme") == (
        "It still has pipelines: web. Delete them first."
    )
    assert await state(up_place, of) == "active"
    await up_place.delete("LogPipeline", "web")
    assert await is_gone(up_place)


async def test_who_waits_for_a_deletion_is_told_what_it_waits_for_once(up_place):
    of = await made(up_place, tenant(), pipeline())
    await append_records(up_place, of, 1)
    await delete_all(up_place)
    said: list[str] = []
    wanted = [("LogPipeline", "default", "web"), ("LogTenant", "default", "acme")]
    waiting = asyncio.create_task(
        objects.until_gone(up_place.control, wanted, said.append, poll_s=0.01)
    )
    await up_place.passes(3)
    async with asyncio.timeout(10):
        while len(said) < 2:
            await asyncio.sleep(0.01)
    await drain(up_place, of)
    assert not waiting.done()
    assert await is_gone(up_place)
    await waiting

    assert sorted(said)[:2] == [
        "logpipeline/web: 1 blocks of its journal are not stored yet.",
        "logtenant/acme: draining: 1 block with 1 record is not stored yet;"
        " given up if none is within 10 min.",
    ]


# ---- kept and adopted -----------------------------------------------------------------------


async def kept(place: Place, **spec: object) -> TenantId:
    """A tenant with one stored record that was deleted with deletionPolicy Retain."""
    of = await made(place, tenant(**spec), pipeline())
    await append_records(place, of, 1)
    await drain(place, of)
    await delete_all(place)
    assert await is_gone(place)
    return of


async def test_of_a_kept_tenant_only_its_data_and_its_locked_logins_are_left(up_place):
    of = await kept(up_place)
    roles = "select rolname from pg_roles where rolname like %s and rolcanlogin"

    assert await state(up_place, of) == "retained"
    assert records_in(up_place, of) == 1
    assert up_place.sql(roles, names.schema(of) + "\\_%") == []
    assert [o for o in await up_place.cluster._journal.acl_users() if of in o] == []
    assert await up_place.cluster._journal.keys(names.journal_tenant(of) + "*") == []
    assert [one for one in await up_place.control.api_keys() if one.tenant == of] == []
    assert (up_place.drained(), up_place.key_files()) == ([], [])


async def test_the_same_manifest_adopts_what_was_kept(up_place):
    of = await kept(up_place, retention={"days": 30})
    again = await made(up_place, tenant(retention={"days": 7}), pipeline())
    await append_records(up_place, of, 2)
    await drain(up_place, of)

    assert again == of
    assert await state(up_place, of) == "active"
    assert await read_records(up_place, of) == 3
    days = f"select retention_days from {names.schema(of)}.settings"
    assert up_place.sql(days) == [(7,)]


async def test_no_key_of_before_is_good_for_who_adopts(up_place):
    await made(up_place, tenant(), pipeline())
    before = {name: keys.decode(text) for name, text in up_place.keys().keys.items()}
    await delete_all(up_place)
    assert await is_gone(up_place)
    await made(up_place, tenant(), pipeline())
    row = await up_place.row("acme")
    [mine] = up_place.ingest_binding().tenants

    assert str(before["in"].key.revision) not in mine.secrets
    assert before["out"].key.revision != row.access_revision
    after = {name: keys.decode(text) for name, text in up_place.keys().keys.items()}
    assert {one.key.revision for one in after.values()} == {row.ingest_revision}


async def test_kept_data_is_no_other_s_and_said_so(up_place):
    await kept(up_place, tenantId="kept-id")
    await up_place.apply(tenant("other", tenantId="kept-id"), tenant(tenantId="second-id"))
    await up_place.passes()

    assert await up_place.ready("LogTenant", "other") == ("False", "IdentityClaimed")
    assert "'kept-id' belongs to another LogTenant, whose data is kept." in (
        await up_place.message("LogTenant", "other")
    )
    assert await up_place.ready("LogTenant", "acme") == ("False", "IdentityClaimed")
    assert "its data is kept as 'kept-id'" in await up_place.message("LogTenant", "acme")
    assert await state(up_place, TenantId("kept-id")) == "retained"


async def test_an_adoption_that_is_deleted_again_is_closed_again(up_place, monkeypatch):
    of = await kept(up_place)

    async def provision_journal(*_: object) -> None:
        raise errors.UnavailableError("The journal is away.")

    with monkeypatch.context() as patched:
        patched.setattr(provision, "provision_journal", provision_journal)
        await up_place.apply(tenant())
        await up_place.passes()
    await up_place.delete("LogTenant", "acme")

    assert await is_gone(up_place)
    assert await state(up_place, of) == "retained"
    roles = "select rolname from pg_roles where rolname like %s and rolcanlogin"
    assert up_place.sql(roles, names.schema(of) + "\\_%") == []


@pytest.mark.parametrize("passes", [0, 1], ids=["at once", "when it was adopted"])
async def test_kept_data_is_dropped_by_its_manifest_with_the_policy_delete(up_place, passes):
    of = await kept(up_place)
    await up_place.apply(tenant(**DELETE))
    await up_place.passes(passes)
    await up_place.delete("LogTenant", "acme")

    assert await is_gone(up_place)
    assert await state(up_place, of) == "deleted"
    assert await is_left(up_place, of) == []


# ---- dropped --------------------------------------------------------------------------------


async def test_a_name_that_is_used_again_after_a_deletion_has_a_new_id(up_place):
    of = await made(up_place, tenant(**DELETE), pipeline())
    await delete_all(up_place)
    assert await is_gone(up_place)
    again = await made(up_place, tenant(**DELETE), pipeline())

    assert again != of
    assert await state(up_place, of) == "deleted"
    assert await is_left(up_place, of) == []
    assert await up_place.ready("LogTenant", "acme") == ("True", "Reconciled")


async def test_an_id_that_was_dropped_says_what_to_do_and_can_be_released(up_place, monkeypatch):
    monkeypatch.setattr(making, "RETRY_S", (0.0, 0.0))
    spec = {"tenantId": "retired-id", **DELETE}
    await made(up_place, tenant(**spec))
    await up_place.delete("LogTenant", "acme")
    assert await is_gone(up_place)
    await up_place.apply(tenant(**spec))
    await up_place.passes()

    assert await up_place.ready("LogTenant", "acme") == ("False", "IdentityClaimed")
    assert await up_place.message("LogTenant", "acme") == (
        "The tenant id 'retired-id' is retired: its tenant was deleted. Choose another"
        " spec.tenantId, or leave it out for a new one; a platform admin can release a retired id."
    )

    assert await up_place.control.release_tenant_id(TenantId("retired-id"))
    await up_place.passes()

    assert await up_place.ready("LogTenant", "acme") == ("True", "Reconciled")
    assert (await up_place.row("acme")).id == "retired-id"


async def test_a_store_is_dropped_piece_by_piece_under_another_name(up_place, monkeypatch):
    of = await made(up_place, tenant(retention={"days": 60}, **DELETE), pipeline())
    up_place.sql(f"update {names.schema(of)}.settings set partition_width = 'day'")
    up_place.sql(
        f"select {names.schema(of)}.ensure_partition((extract(epoch from now())::int8"
        " - day * 86400) * 1000000000) from generate_series(32, 36) as day"
    )
    monkeypatch.setattr(deprovision, "DROPS_AT_ONCE", 2)
    await delete_all(up_place)
    said = []
    for _ in range(3):
        await up_place.passes()
        said.append(await up_place.message("LogTenant", "acme"))

    assert said[1:] == [
        "tombstoned: 4 partitions are not dropped yet.",
        "tombstoned: 2 partitions are not dropped yet.",
    ]
    assert schemas(up_place, of) == [names.tombstone(of)]
    assert await is_gone(up_place)
    assert await is_left(up_place, of) == []


async def test_a_drop_does_not_wait_long_for_a_lock_and_is_done_later(up_place):
    of = await made(up_place, tenant(**DELETE), pipeline())
    with psycopg.connect(up_place.postgres.url(database=provision.DATABASE)) as backup:
        backup.execute(f"lock table {names.schema(of)}.segments in access share mode".encode())
        await delete_all(up_place)
        await up_place.passes(2)
        said = await up_place.message("LogTenant", "acme")

    assert "lock timeout" in said
    assert await is_gone(up_place)
    assert await is_left(up_place, of) == []


# ---- interrupted ----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
async def test_a_tenant_without_its_object_is_swept(up_place, policy):
    of = await made(up_place, tenant(deletionPolicy=policy), pipeline())
    await append_records(up_place, of, 1)
    await delete_all(up_place)
    await up_place.passes()
    up_place.sql("delete from logweir.objects")  # as by force
    await up_place.restart()
    await up_place.passes()

    assert await state(up_place, of) == "draining"
    await drain(up_place, of)
    await up_place.passes(3)
    assert await state(up_place, of) == ("retained" if policy == "Retain" else "deleted")
    assert bool(await is_left(up_place, of)) == (policy == "Retain")


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
async def test_a_tenant_that_comes_again_while_it_goes_is_made_afterwards(
    up_place, monkeypatch, policy
):
    monkeypatch.setattr(making, "RETRY_S", (0.0, 0.0))
    documents = [tenant(deletionPolicy=policy), pipeline()]
    of = await made(up_place, *documents)
    await append_records(up_place, of, 1)
    await delete_all(up_place)
    await up_place.passes()
    up_place.sql("delete from logweir.objects")  # as by force
    await up_place.apply(*documents)
    await up_place.passes()

    assert await up_place.ready("LogTenant", "acme") == ("False", "Retrying")
    assert f"The tenant {of!r} of this name is still being deleted (draining)" in (
        await up_place.message("LogTenant", "acme")
    )

    await drain(up_place, of)
    await up_place.passes(4)
    row = await up_place.row("acme")

    assert await up_place.ready("LogTenant", "acme") == ("True", "Reconciled")
    assert (row.id == of) == (policy == "Retain")
    assert row.state == "active"
    if policy == "Retain":
        assert await read_records(up_place, of) == 1


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
@pytest.mark.parametrize("fails", ["provision_store", "provision_journal"])
async def test_a_tenant_that_could_never_be_made_can_be_deleted(
    up_place, monkeypatch, fails, policy
):
    def fail(*_: object) -> None:
        raise errors.UnavailableError("There is no room.")

    monkeypatch.setattr(provision, fails, fail)
    of = await made(up_place, tenant(deletionPolicy=policy), pipeline())
    assert await up_place.ready("LogTenant", "acme") == ("False", "Retrying")
    await delete_all(up_place)

    assert await is_gone(up_place)
    if policy == "Delete":
        assert await is_left(up_place, of) == []


async def test_of_two_that_claim_one_id_the_deletion_of_one_leaves_the_other(up_place, monkeypatch):
    monkeypatch.setattr(making, "RETRY_S", (0.0, 0.0))
    spec = {"tenantId": "one-id", **DELETE}
    await made(up_place, tenant("first", **spec), pipeline(of="first"))
    await up_place.apply(tenant("second", **spec))
    await up_place.passes()
    await up_place.delete("LogTenant", "second")

    assert await is_gone(up_place, "second")
    assert await up_place.ready("LogTenant", "first") == ("True", "Reconciled")
    await append_records(up_place, TenantId("one-id"), 1)
    await drain(up_place, TenantId("one-id"))

    await up_place.apply(tenant("second", **spec))
    await delete_all(up_place, "first")
    assert await is_gone(up_place, "first")
    await up_place.passes()
    assert await up_place.ready("LogTenant", "second") == ("False", "IdentityClaimed")
    assert "is retired" in await up_place.message("LogTenant", "second")
