"""What the reconciler of `up` makes of resources, and takes away again."""

from __future__ import annotations

import time

import psycopg
import pytest
from reconciling import (
    URL,
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

from logweir.backends import provision, store
from logweir.core import errors, keys, names
from logweir_operator import making

# ---- making ---------------------------------------------------------------------------------


@pytest.mark.parametrize("is_tenant_first", [True, False], ids=["tenant first", "pipeline first"])
async def test_a_tenant_and_its_pipeline_may_come_in_any_order(up_place, is_tenant_first):
    documents = [tenant(), pipeline()]
    for one in documents if is_tenant_first else documents[::-1]:
        await up_place.apply(one)
        await up_place.passes()

    assert await up_place.ready("LogTenant", "acme") == ("True", "Reconciled")
    assert await up_place.ready("LogPipeline", "web") == ("True", "Reconciled")
    assert (up_place.served(), up_place.drained()) == (["web"], ["web"])


async def test_a_pipeline_without_its_tenant_waits_for_it(up_place):
    await up_place.apply(pipeline())
    await up_place.passes()

    assert await up_place.ready("LogPipeline", "web") == ("False", "TenantNotFound")
    assert up_place.served() == []


async def test_one_pass_makes_all_that_a_user_needs(up_place):
    of = await made(up_place, tenant(), pipeline())

    found = up_place.keys()
    assert (found.tenant, found.url, found.pipelines) == (of, f"{URL}/t/{of}", ["web"])
    assert up_place.access().ingest_url == f"{URL}/t/{of}/web/ingest"
    assert up_place.access().ingest_key == found.keys["in"]
    assert up_place.access().query_key == found.keys["out"]


async def test_what_is_made_works_with_the_logins_of_the_bindings(up_place):
    of = await made(up_place, tenant(), pipeline())
    await append_records(up_place, of, 1)
    await drain(up_place, of)

    assert records_in(up_place, of) == 1


async def test_a_generated_id_stays_the_same(up_place):
    before = await made(up_place, tenant(), pipeline())
    await up_place.apply(tenant(displayName="Acme"))
    await up_place.restart()
    await up_place.passes()

    assert (await up_place.row("acme")).id == before


async def test_a_given_id_is_taken(up_place):
    assert await made(up_place, tenant("given", tenantId="given-id")) == "given-id"


async def test_an_id_of_another_is_refused_and_said(up_place):
    await made(up_place, tenant("first", tenantId="taken-id"))
    await up_place.apply(tenant("second", tenantId="taken-id"), pipeline(of="second"))
    await up_place.passes()

    assert await up_place.ready("LogTenant", "second") == ("False", "IdentityClaimed")
    assert "'taken-id' belongs to another LogTenant" in await up_place.message(
        "LogTenant", "second"
    )
    assert up_place.served() == []


async def test_what_did_not_change_is_not_made_again(up_place, monkeypatch):
    await made(up_place, tenant(), pipeline())
    made_again = []
    monkeypatch.setattr(
        provision, "provision_store", lambda *arguments: made_again.append(arguments)
    )
    await up_place.passes(3)

    assert made_again == []


async def test_after_a_restart_all_is_made_again_once_and_is_the_same(up_place):
    await made(up_place, tenant(), pipeline())
    before = (up_place.keys(), up_place.ingest_binding(), up_place.collector_binding())
    await up_place.restart()
    begun_s = time.monotonic()
    await up_place.passes()
    print(f"a tenant is made again in {time.monotonic() - begun_s:.2f} s")

    assert (up_place.keys(), up_place.ingest_binding(), up_place.collector_binding()) == before


async def test_a_pass_that_finds_nothing_to_do_writes_nothing(up_place):
    await made(up_place, tenant(), pipeline(), passes=2)
    [[before]] = up_place.sql("select sum(n_tup_upd + n_tup_ins) from pg_stat_all_tables")
    files = {path: path.stat().st_mtime_ns for path in up_place.folder.path.rglob("*.json")}
    stored = await up_place.control.objects()
    await up_place.passes(3)

    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert await up_place.control.objects() == stored
    assert before is not None


async def test_a_tenant_that_fails_says_why_and_holds_up_no_other(up_place, monkeypatch):
    honest = provision.provision_store

    def provision_store(conninfo, row, roots, limits):
        if row.name == "broken":
            raise errors.UnavailableError("The store has no room.")
        honest(conninfo, row, roots, limits)

    monkeypatch.setattr(provision, "provision_store", provision_store)
    await up_place.apply(tenant("broken"), pipeline("a", "broken"), tenant(), pipeline())
    await up_place.passes()

    assert await up_place.ready("LogTenant", "broken") == ("False", "Retrying")
    assert await up_place.message("LogTenant", "broken") == "The store has no room."
    assert await up_place.ready("LogTenant", "acme") == ("True", "Reconciled")
    assert up_place.served() == ["web"]


async def test_a_tenant_that_failed_is_made_later(up_place, monkeypatch):
    honest = provision.provision_store
    tries = []

    def provision_store(*arguments):
        tries.append(arguments)
        if len(tries) < 3:
            raise errors.UnavailableError("The store is away.")
        honest(*arguments)

    monkeypatch.setattr(provision, "provision_store", provision_store)
    monkeypatch.setattr(making, "RETRY_S", (0.0, 0.0))
    await up_place.apply(tenant())
    await up_place.passes(3)

    assert await up_place.ready("LogTenant", "acme") == ("True", "Reconciled")


async def test_a_resource_that_was_mended_is_made_at_once(up_place, monkeypatch):
    monkeypatch.setattr(making, "RETRY_S", (1000.0, 1000.0))
    await made(up_place, tenant("first", tenantId="mended-id"))
    await up_place.apply(tenant("second", tenantId="mended-id"))
    await up_place.passes(2)
    await up_place.control.delete_object("LogTenant", "default", "second")
    await up_place.passes()
    await up_place.apply(tenant("second", tenantId="mended-too"))
    await up_place.passes()

    assert await up_place.ready("LogTenant", "second") == ("True", "Reconciled")


async def test_a_failed_resource_is_made_at_once_when_it_changes(up_place, monkeypatch):
    monkeypatch.setattr(making, "RETRY_S", (1000.0, 1000.0))
    honest = provision.provision_store

    def provision_store(conninfo, row, roots, limits):
        if limits.connection_limit > 100:
            raise errors.UnavailableError("Too many connections.")
        honest(conninfo, row, roots, limits)

    monkeypatch.setattr(provision, "provision_store", provision_store)
    await up_place.apply(tenant(postgres={"connectionLimit": 101}))
    await up_place.passes()
    await up_place.apply(tenant(postgres={"connectionLimit": 100}))
    await up_place.passes()

    assert await up_place.ready("LogTenant", "acme") == ("True", "Reconciled")


async def test_trouble_with_a_change_leaves_what_was_served(up_place, monkeypatch):
    await made(up_place, tenant(), pipeline())

    def provision_store(*_):
        raise errors.UnavailableError("The store is away.")

    monkeypatch.setattr(provision, "provision_store", provision_store)
    await up_place.apply(tenant(displayName="Acme"))
    await up_place.passes()

    assert await up_place.ready("LogTenant", "acme") == ("False", "Retrying")
    assert up_place.served() == ["web"]


async def test_an_object_of_another_version_holds_up_no_other(up_place):
    await made(up_place, tenant(), pipeline())
    await up_place.control.apply_object("LogTenant", "default", "newer", {"unheardOf": 1})
    await up_place.apply(pipeline("other"))
    await up_place.passes()

    assert await up_place.ready("LogTenant", "newer") == ("False", "InvalidSpec")
    assert "spec.unheardOf: unknown field" in await up_place.message("LogTenant", "newer")
    assert sorted(up_place.served()) == ["other", "web"]


# ---- quotas, states, keys -------------------------------------------------------------------


async def test_over_the_quota_the_newest_pipeline_is_not_served(up_place):
    await made(up_place, tenant(quotas={"maxPipelines": 1}), pipeline("old"), passes=2)
    await up_place.apply(pipeline("new"))
    await up_place.passes(2)

    assert await up_place.ready("LogPipeline", "new") == ("False", "QuotaExceeded")
    assert up_place.served() == ["old"]


async def test_a_pipeline_that_a_quota_closes_is_still_drained(up_place):
    await made(up_place, tenant(), pipeline("old"), passes=2)
    await up_place.apply(pipeline("new"))
    await up_place.passes(2)
    await up_place.apply(tenant(quotas={"maxPipelines": 1}))
    await up_place.passes(2)

    assert up_place.served() == ["old"]
    assert sorted(up_place.drained()) == ["new", "old"]


async def test_a_tenant_that_another_program_wrote_is_still_drained(up_place):
    await made(up_place, tenant(), pipeline())
    await up_place.control.apply_object("LogTenant", "default", "acme", {"unheardOf": 1})
    await up_place.restart()
    await up_place.passes()

    assert up_place.drained() == ["web"]


async def test_no_tenant_may_fill_the_whole_journal(up_place):
    journal = up_place.cluster._journal
    before = await journal.config_get("maxmemory")
    await journal.config_set("maxmemory", 64 << 20)
    try:
        of = await made(up_place, tenant(), pipeline())
        found = await journal.hget(names.journal_tenant(of) + "m", "max_bytes")
    finally:
        await journal.config_set("maxmemory", before["maxmemory"])

    assert int(found) == 32 << 20


async def test_quotas_reach_the_journal(up_place):
    of = await made(
        up_place, tenant(quotas={"recordsPerSecond": 7, "bufferBytes": 2 << 20}), pipeline()
    )
    found = await up_place.cluster._journal.hgetall(names.journal_tenant(of) + "m")

    assert (found[b"rps"], found[b"max_bytes"], found[b"bps"]) == (b"7", b"2097152", b"")


async def test_a_read_only_tenant_takes_no_records(up_place):
    of = await made(up_place, tenant(readOnly=True), pipeline())
    to = await only_pipeline(up_place, of)
    door = appender(up_place, of)
    with pytest.raises(errors.ForbiddenError):
        await append(door, of, to)
    await door.close()


async def test_a_suspended_tenant_stays_as_it_is(up_place):
    of = await made(up_place, tenant(), pipeline())
    await up_place.apply(tenant(suspend=True, retention={"days": 1}), pipeline("other"))
    await up_place.passes()

    assert await up_place.ready("LogTenant", "acme") == ("False", "Suspended")
    assert (await up_place.row("acme")).retention_days == 30
    assert up_place.served() == ["web"]
    assert (await up_place.row("acme")).id == of


async def test_a_shorter_retention_of_a_pipeline_is_its_own(up_place):
    await made(up_place, tenant(retention={"days": 9}), pipeline(retention={"days": 3}))
    [mine] = up_place.ingest_binding().tenants

    assert [one.retention_days for one in mine.pipelines] == [3]


async def test_a_key_that_leaves_the_resource_is_revoked(up_place):
    of = await made(up_place, tenant(), pipeline())
    before = keys.decode(up_place.keys().keys["out"])
    await up_place.apply(tenant(apiKeys=[{"name": "in", "scopes": ["ingest"]}]))
    await up_place.passes()

    [row] = [one for one in await up_place.control.api_keys() if one.id == before.key.key_id]
    assert row.revoked_at is not None
    assert list(up_place.keys().keys) == ["in"]
    assert await up_place.cluster._journal.hexists(names.journal_tenant(of) + "cfg", f"r:{row.id}")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"generation": 2}, id="rolled"),
        pytest.param({"expiresAt": "2035-01-01T00:00:00Z"}, id="with an expiry now"),
        pytest.param({"pipeline": "web"}, id="for one pipeline now"),
    ],
)
async def test_a_key_that_changes_is_another_key(up_place, change):
    of = await made(up_place, tenant(), pipeline())
    before = up_place.keys().keys["in"]
    await up_place.apply(tenant(apiKeys=[{"name": "in", "scopes": ["ingest"]} | change]))
    await up_place.passes()

    assert up_place.keys().keys["in"] != before
    own = [one for one in await up_place.control.api_keys() if one.tenant == of]
    assert [one.name for one in own if one.revoked_at is None] == ["in"]


async def test_a_key_without_a_change_stays_the_same(up_place):
    await made(up_place, tenant(), pipeline())
    before = up_place.keys().keys
    await up_place.apply(tenant(displayName="Acme"))
    await up_place.passes()

    assert up_place.keys().keys == before


async def test_a_disabled_key_is_revoked(up_place):
    await made(up_place, tenant(), pipeline())
    await up_place.apply(tenant(apiKeys=[{"name": "in", "scopes": ["ingest"], "enabled": False}]))
    await up_place.passes()

    assert up_place.keys().keys == {}


async def test_a_key_for_one_pipeline_waits_for_it(up_place):
    only = [{"name": "in", "scopes": ["ingest"], "pipeline": "late"}]
    await made(up_place, tenant(apiKeys=only), pipeline("early"))
    early = up_place.keys()
    await up_place.apply(pipeline("late"))
    await up_place.passes()

    assert (early.keys, up_place.keys().only_for) == ({}, {"in": "late"})
    assert (up_place.access().pipeline, bool(up_place.access().ingest_key)) == ("late", True)


async def test_a_key_for_a_pipeline_that_is_deleted_is_revoked(up_place):
    only = [{"name": "in", "scopes": ["ingest"], "pipeline": "web"}]
    await made(up_place, tenant(apiKeys=only), pipeline(), pipeline("other"))
    before = keys.decode(up_place.keys().keys["in"])
    await up_place.delete("LogPipeline", "web")
    await up_place.passes(2)

    [row] = [one for one in await up_place.control.api_keys() if one.id == before.key.key_id]
    assert row.revoked_at is not None
    assert up_place.keys().keys == {}


# ---- status ---------------------------------------------------------------------------------


async def test_a_condition_says_since_when(up_place):
    await up_place.apply(pipeline())
    await up_place.passes()
    stored = await up_place.object("LogPipeline", "web")
    [first] = [c for c in stored.status["conditions"] if c["type"] == "Ready"]
    await up_place.passes()
    again = await up_place.object("LogPipeline", "web")

    assert first["lastTransitionTime"].endswith("+00:00")
    assert again.status == stored.status


async def test_the_status_follows_the_generation(up_place):
    await made(up_place, tenant(), pipeline())
    await up_place.apply(tenant(displayName="Acme"))
    await up_place.passes()
    found = await up_place.object("LogTenant", "acme")

    assert (found.generation, found.status["observedGeneration"]) == (2, 2)
    assert found.status["conditions"][0]["observedGeneration"] == 2


# ---- deleting -------------------------------------------------------------------------------


async def test_a_pipeline_refuses_records_before_its_journal_is_looked_at_for_the_last_time(
    up_place,
):
    of = await made(up_place, tenant(), pipeline())
    to = await only_pipeline(up_place, of)
    door = appender(up_place, of)
    await append(door, of, to)
    await up_place.delete("LogPipeline", "web")
    await up_place.passes()

    with pytest.raises(errors.LogweirError):
        await append(door, of, to)
    await door.close()


async def test_a_pipeline_is_drained_before_it_is_gone(up_place):
    of = await made(up_place, tenant(), pipeline())
    await append_records(up_place, of, 3)
    await up_place.delete("LogPipeline", "web")
    await up_place.passes(3)

    assert (up_place.served(), up_place.drained()) == ([], ["web"])
    assert await up_place.ready("LogPipeline", "web") == ("False", "Deleting")
    assert await up_place.message("LogPipeline", "web") == (
        "3 blocks of its journal are not stored yet."
    )

    await drain(up_place, of)
    await up_place.passes()

    assert await up_place.object("LogPipeline", "web") is None
    assert up_place.drained() == []
    assert records_in(up_place, of) == 3


async def test_nothing_of_a_deleted_pipeline_is_left_in_the_journal(up_place):
    of = await made(up_place, tenant(), pipeline())
    to = await only_pipeline(up_place, of)
    await append_records(up_place, of, 1)
    await drain(up_place, of)
    await up_place.delete("LogPipeline", "web")
    await up_place.passes()

    assert await up_place.cluster._journal.keys(names.journal_pipeline(of, to) + "*") == []


async def test_a_pipeline_of_the_same_name_is_another_one(up_place):
    of = await made(up_place, tenant(), pipeline())
    before = await only_pipeline(up_place, of)
    await up_place.delete("LogPipeline", "web")
    await up_place.passes()
    await up_place.apply(pipeline())
    await up_place.passes()

    after = await only_pipeline(up_place, of)
    assert before != after
    assert up_place.served() == ["web"]


async def test_a_deleted_pipeline_is_still_known_to_who_reads_its_records(up_place):
    of = await made(up_place, tenant(), pipeline())
    await up_place.delete("LogPipeline", "web")
    await up_place.passes()
    live = await up_place.control.pipelines()
    known = await up_place.control.pipelines(with_deleted=True)

    assert [one.name for one in live if one.tenant == of] == []
    assert [(one.name, one.state) for one in known if one.tenant == of] == [("web", "deleted")]


async def test_a_deleted_tenant_waits_for_its_pipelines(up_place):
    of = await made(up_place, tenant(), pipeline())
    await append_records(up_place, of, 1)
    await up_place.delete("LogPipeline", "web")
    await up_place.delete("LogTenant", "acme")
    await up_place.passes(2)

    assert (await up_place.message("LogTenant", "acme")).startswith(
        "draining: 1 block with 1 record is not stored yet;"
    )

    await drain(up_place, of)
    await up_place.passes(2)

    assert await up_place.object("LogTenant", "acme") is None


async def test_retained_data_is_found_again_by_the_same_manifest(up_place):
    of = await made(up_place, tenant(), pipeline())
    await append_records(up_place, of, 1)
    await drain(up_place, of)
    old_keys = up_place.keys().keys
    await up_place.delete("LogPipeline", "web")
    await up_place.delete("LogTenant", "acme")
    await up_place.passes(2)

    assert (up_place.key_files(), up_place.access().tenant) == ([], "")

    again = await made(up_place, tenant(), pipeline())

    assert again == of
    assert records_in(up_place, of) == 1
    assert await up_place.ready("LogTenant", "acme") == ("True", "Reconciled")
    assert not set(up_place.keys().keys.values()) & set(old_keys.values())


async def test_the_logins_of_a_retained_tenant_are_locked(up_place):
    of = await made(up_place, tenant())
    await up_place.delete("LogTenant", "acme")
    await up_place.passes()
    can_log_in = "select rolname from pg_roles where rolcanlogin and rolname like %s"

    assert up_place.sql(can_log_in, names.schema(of) + "_%") == []

    await made(up_place, tenant())

    assert len(up_place.sql(can_log_in, names.schema(of) + "_%")) == 3


async def test_the_policy_delete_leaves_nothing(up_place):
    of = await made(up_place, tenant(deletionPolicy="Delete"), pipeline())
    [mine] = up_place.collector_binding().tenants
    with psycopg.connect(store.conninfo(mine.store, mine.store_login, "test")) as still_open:
        await up_place.delete("LogPipeline", "web")
        await up_place.delete("LogTenant", "acme")
        await up_place.passes(3)

        with pytest.raises(psycopg.OperationalError):
            still_open.execute("select 1")

    schema = names.schema(of)
    assert await up_place.object("LogTenant", "acme") is None
    assert up_place.sql("select 1 from pg_namespace where nspname = %s", schema) == []
    assert up_place.sql("select 1 from pg_roles where rolname like %s", schema + "\\_%") == []
    users = await up_place.cluster._journal.acl_users()
    assert [one for one in users if of in one] == []
    assert await up_place.cluster._journal.keys(names.journal_tenant(of) + "*") == []
    assert [one for one in await up_place.control.api_keys() if one.tenant == of] == []
    assert up_place.key_files() == []


async def test_a_deleted_id_is_never_given_to_another(up_place):
    spec = {"tenantId": "gone-for-good", "deletionPolicy": "Delete"}
    await made(up_place, tenant("first", **spec))
    await up_place.delete("LogTenant", "first")
    await up_place.passes()
    await up_place.apply(tenant("second", **spec))
    await up_place.passes()

    assert await up_place.ready("LogTenant", "second") == ("False", "IdentityClaimed")


async def test_a_deletion_that_fails_says_why_and_goes_on_later(up_place, monkeypatch):
    await made(up_place, tenant())
    from logweir.backends import deprovision

    honest = deprovision.close_store
    tries = []

    def close_store(*arguments):
        tries.append(arguments)
        if len(tries) == 1:
            raise errors.UnavailableError("The store is away.")
        honest(*arguments)

    monkeypatch.setattr(deprovision, "close_store", close_store)
    await up_place.delete("LogTenant", "acme")
    await up_place.passes()

    assert await up_place.message("LogTenant", "acme") == "The store is away."

    await up_place.passes()

    assert await up_place.object("LogTenant", "acme") is None


async def test_tenants_of_one_name_in_two_namespaces_are_two(up_place):
    await up_place.apply(tenant(), tenant(namespace="staging"))
    await up_place.apply(pipeline(namespace="staging"))
    await up_place.passes()
    ids = {(await up_place.row("acme", ns)).id for ns in ("default", "staging")}

    assert len(ids) == 2
    assert up_place.key_files() == ["default.acme.json", "staging.acme.json"]
    assert up_place.keys(namespace="staging").pipelines == ["web"]
    assert up_place.keys().pipelines == []
