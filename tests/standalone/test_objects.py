"""Resources of an `up` by kubectl's words: applied, listed, deleted."""

from __future__ import annotations

import msgspec
import pytest
import yaml
from reconciling import pipeline, tenant

from logweir.core import errors
from logweir.standalone import listing, objects
from logweir_operator import manifest


async def listed(up_place, kind="all", name="", form="", namespace="default") -> str:
    return listing.text(await up_place.control.objects(), kind, namespace, name, form)


def columns(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


async def test_what_became_of_each_resource_is_said_as_kubectl_says_it(up_place):
    first = await up_place.apply(tenant(), pipeline())
    again = await up_place.apply(tenant(displayName="new"), pipeline())

    assert first == [
        "logtenant.logweir.dev/acme created",
        "logpipeline.logweir.dev/web created",
    ]
    assert again == [
        "logtenant.logweir.dev/acme configured",
        "logpipeline.logweir.dev/web unchanged",
    ]


async def test_one_wrong_resource_keeps_all_of_a_file_out(up_place):
    await up_place.apply(pipeline())

    with pytest.raises(manifest.ManifestError, match=r"spec\.tenantRef: is immutable"):
        await up_place.apply(tenant(), pipeline(of="other"))

    assert await up_place.object("LogTenant", "acme") is None


async def test_an_immutable_field_may_not_change_within_a_file_either(up_place):
    with pytest.raises(manifest.ManifestError, match=r"spec\.tenantRef"):
        await up_place.apply(pipeline(), pipeline(of="other"))

    assert await up_place.control.objects() == []


async def test_what_is_being_deleted_cannot_be_applied(up_place):
    await up_place.apply(tenant())
    await up_place.delete("LogTenant", "acme")

    with pytest.raises(objects.LeavingError, match='LogTenant "acme" is being deleted'):
        await up_place.apply(tenant())


async def test_what_another_version_wrote_can_be_replaced_and_deleted(up_place):
    await up_place.control.apply_object("LogTenant", "default", "acme", {"unheardOf": 1})

    assert await up_place.apply(tenant()) == ["logtenant.logweir.dev/acme configured"]

    await up_place.control.apply_object("LogTenant", "default", "acme", {"unheardOf": 1})
    await up_place.delete("LogTenant", "acme")
    await up_place.passes()

    assert await up_place.object("LogTenant", "acme") is None


async def test_what_is_not_there_cannot_be_deleted(up_place):
    with pytest.raises(errors.NotFoundError, match=r'logtenants\.logweir\.dev "acme" not found'):
        await up_place.delete("LogTenant", "acme")


async def test_a_protected_tenant_cannot_be_deleted(up_place):
    await up_place.apply(tenant(deletionProtection=True))

    with pytest.raises(errors.ForbiddenError, match="deletionProtection"):
        await up_place.delete("LogTenant", "acme")

    await up_place.apply(tenant())
    await up_place.delete("LogTenant", "acme")

    assert (await up_place.object("LogTenant", "acme")).deleted_at is not None


async def test_a_tenant_with_pipelines_cannot_be_deleted_and_they_are_named(up_place):
    await up_place.apply(tenant(), pipeline("b"), pipeline("a"), pipeline("c", namespace="other"))

    with pytest.raises(errors.ForbiddenError, match=r"still has pipelines: a, b\."):
        await up_place.delete("LogTenant", "acme")


async def test_a_tenant_whose_pipelines_are_going_can_be_deleted(up_place):
    await up_place.apply(tenant(), pipeline())
    await up_place.delete("LogPipeline", "web")
    await up_place.delete("LogTenant", "acme")

    assert (await up_place.object("LogTenant", "acme")).deleted_at is not None


@pytest.mark.parametrize("word", ["lt", "LogTenant", "logtenants", "logtenants.logweir.dev"])
def test_a_kind_has_many_names(word):
    assert objects.kind_of(word) == "LogTenant"


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(errors.BadRequestError, match="no resource type 'pods'") as refused:
        objects.kind_of("pods")

    assert "logtenants (lt)" in refused.value.hint


async def test_a_table_shows_what_is_ready_and_why_not(up_place):
    await up_place.apply(tenant(tenantId="table-id"), pipeline(of="nobody"))
    await up_place.passes()

    tenants, pipelines = (await listed(up_place)).split("\n\n")
    heads = ["NAME", "ID", "READY", "REASON", "STORED", "OLDEST", "NEXT-DROP", "AGE"]
    assert columns(tenants)[0] == heads
    assert columns(tenants)[1][:4] == ["acme", "table-id", "True", "Reconciled"]
    assert columns(pipelines)[1][:4] == ["web", "nobody", "False", "TenantNotFound"]


async def test_a_wide_table_shows_messages_and_addresses(up_place):
    await up_place.apply(tenant(tenantId="wide-id"), pipeline())
    await up_place.passes()

    assert "Everything is as the resource says." in await listed(up_place, "lt", form="wide")
    assert "http://up/t/wide-id/web" in await listed(up_place, "lp", form="wide")


async def test_only_the_resource_that_is_named_is_listed(up_place):
    await up_place.apply(tenant("a"), tenant("b"))

    assert [line[0] for line in columns(await listed(up_place, "lt", "b"))] == ["NAME", "b"]


async def test_a_resource_that_is_not_there_is_an_error_by_name_and_none_without(up_place):
    with pytest.raises(errors.NotFoundError):
        await listed(up_place, "lt", "nobody")

    assert await listed(up_place, "lt") == ""


async def test_other_namespaces_are_not_listed(up_place):
    await up_place.apply(tenant("a"), tenant("b", namespace="other"))

    assert [line[0] for line in columns(await listed(up_place, "lt", namespace="other"))][1:] == [
        "b"
    ]


async def test_a_resource_that_leaves_says_so_at_once(up_place):
    await up_place.apply(tenant())
    await up_place.delete("LogTenant", "acme")

    assert columns(await listed(up_place))[1][1:3] == ["False", "Deleting"]


@pytest.mark.parametrize(
    ("form", "read"), [("yaml", yaml.safe_load), ("json", msgspec.json.decode)]
)
async def test_what_is_listed_can_be_applied_again(up_place, form, read):
    await up_place.apply(tenant(), pipeline())
    await up_place.passes()
    whole = read(await listed(up_place, form=form))
    one = read(await listed(up_place, "lt", "acme", form))

    assert await up_place.apply(whole) == [
        "logtenant.logweir.dev/acme unchanged",
        "logpipeline.logweir.dev/web unchanged",
    ]
    assert await up_place.apply(one) == ["logtenant.logweir.dev/acme unchanged"]
    assert one["status"]["conditions"][0]["reason"] == "Reconciled"


async def test_an_unknown_form_is_refused(up_place):
    with pytest.raises(errors.BadRequestError, match="-o xml is not known"):
        await listed(up_place, form="xml")


async def test_the_key_for_a_pipeline_is_chosen_with_its_address(up_place):
    keys = [
        {"name": "one", "scopes": ["ingest"], "pipeline": "b"},
        {"name": "read", "scopes": ["query"]},
    ]
    await up_place.apply(tenant(tenantId="choose-id", apiKeys=keys), pipeline("a"), pipeline("b"))
    await up_place.passes()
    found = up_place.keys().keys

    def address(tenant: str, pipeline: str, prefix: str) -> tuple[str, str]:
        return listing.address(up_place.folder, tenant, pipeline, prefix)

    url = "http://up/t/choose-id"
    assert address("", "", "lwi_") == (f"{url}/b", found["one"])
    assert address("acme", "a", "lwa_") == (f"{url}/a", found["read"])
    assert address("default/acme", "", "lwa_") == (f"{url}/a", found["read"])
    for wrong in (("acme", "a", "lwi_"), ("acme", "c", "lwi_"), ("nobody", "", "lwi_")):
        with pytest.raises(errors.NotFoundError):
            address(*wrong)


async def test_keys_are_printed_for_one_tenant_or_the_first(up_place):
    await up_place.apply(tenant("b"), tenant("a"), pipeline("x", "b"), pipeline("y", "a"))
    await up_place.passes()

    first = msgspec.json.decode(listing.keys(up_place.folder, "default", ""))
    named = msgspec.json.decode(listing.keys(up_place.folder, "default", "a"))
    assert (first["name"], named["name"], set(named["keys"])) == ("b", "a", {"in", "out"})
