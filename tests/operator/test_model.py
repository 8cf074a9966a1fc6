"""Rules of the model that need two versions of a resource, and what other tools read of it."""

from __future__ import annotations

import msgspec
import pytest

from logweir_operator import manifest, model, rules

API = "logweir.dev/v1alpha1"


def tenant(**spec: object) -> model.Resource:
    return manifest.resource(
        {"apiVersion": API, "kind": "LogTenant", "metadata": {"name": "a"}, "spec": spec}
    )


def pipeline(tenant_name: str) -> model.Resource:
    spec = {"tenantRef": {"name": tenant_name}}
    return manifest.resource(
        {"apiVersion": API, "kind": "LogPipeline", "metadata": {"name": "p"}, "spec": spec}
    )


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        pytest.param(tenant(tenantId="abc"), tenant(tenantId="abd"), "spec.tenantId", id="the id"),
        pytest.param(tenant(), tenant(tenantId="abc"), "spec.tenantId", id="an id that was made"),
        pytest.param(tenant(tenantId="abc"), tenant(), "spec.tenantId", id="an id that was given"),
        pytest.param(
            tenant(), tenant(postgres={"profile": "b"}), "spec.postgres.profile", id="the store"
        ),
        pytest.param(
            tenant(), tenant(redis={"profile": "b"}), "spec.redis.profile", id="the journal"
        ),
        pytest.param(pipeline("a"), pipeline("b"), "spec.tenantRef", id="a pipeline's tenant"),
    ],
)
def test_what_names_places_of_data_cannot_be_changed(old, new, field):
    changed = rules.changed_for_good(old, new)

    assert [str(one) for one in changed] == [f"{field}: is immutable; make a new resource instead"]


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"deletionPolicy": "Delete"}, id="the deletion policy"),
        pytest.param({"retention": {"days": 1}}, id="the retention"),
        pytest.param({"quotas": {"maxPipelines": 1}}, id="quotas"),
        pytest.param({"apiKeys": [{"name": "a", "scopes": ["query"]}]}, id="keys"),
    ],
)
def test_all_else_may_change(spec):
    assert rules.changed_for_good(tenant(), tenant(**spec)) == []


def test_a_resource_survives_its_stored_form():
    before = tenant(
        tenantId="abc",
        apiKeys=[{"name": "a", "scopes": ["query"], "expiresAt": "2030-01-01T00:00:00Z"}],
        quotas={"namespaceQuota": {"hard": {"cpu": "2", "pods": 3}}},
    )
    spec = msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(before.spec)))

    assert tenant(**spec) == before


@pytest.mark.parametrize("kind", model.KINDS)
def test_each_rule_names_a_field_of_its_kind_and_the_place_of_its_cel(kind):
    fields = manifest._fields(model.KINDS[kind])

    for rule in rules.RULES[kind]:
        assert rule.field in fields
        assert rule.field.startswith(rule.at)
        assert "self." in rule.cel
