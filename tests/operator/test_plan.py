"""What the planner decides from what is seen: who is served, and why others are not."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logweir.core import names
from logweir_operator import manifest, plan
from logweir_operator.plan import Seen, SeenPipeline, SeenTenant

API = "logweir.dev/v1alpha1"


def tenant(name="acme", *, namespace="default", spec=None, **seen) -> SeenTenant:
    resource = manifest.resource(
        {
            "apiVersion": API,
            "kind": "LogTenant",
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec or {},
        }
    )
    return SeenTenant(resource, **({"tenant": f"id-{name}", "is_provisioned": True} | seen))


def pipeline(name="web", of="acme", *, namespace="default", suspend=False, **seen) -> SeenPipeline:
    resource = manifest.resource(
        {
            "apiVersion": API,
            "kind": "LogPipeline",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"tenantRef": {"name": of}, "suspend": suspend},
        }
    )
    defaults = {"made_at": 1.0, "pipeline": 1, "is_provisioned": True}
    return SeenPipeline(resource, **(defaults | seen))


def verdict(planned: plan.Plan, kind: str, name: str, namespace: str = "default"):
    return planned.verdicts.get((kind, namespace, name))


def served(planned: plan.Plan) -> list[str]:
    return [one.resource.metadata.name for one in planned.served]


def test_what_is_made_is_served_and_has_no_verdict():
    planned = plan.plan(Seen([tenant()], [pipeline()]))

    assert (served(planned), planned.verdicts) == (["web"], {})


def test_nothing_is_planned_for_nothing_but_the_roles_themselves():
    planned = plan.plan(Seen())

    assert (planned.served, planned.verdicts) == ((), {})
    assert [one.role for one in planned.workloads] == ["ingest", "collector", "query", "keeper"]


@pytest.mark.parametrize(
    ("of", "reason"),
    [
        pytest.param(tenant(claimed_by_other=True), "IdentityClaimed", id="the id is another's"),
        pytest.param(tenant(spec={"suspend": True}), "Suspended", id="suspended"),
        pytest.param(tenant(problem="no disk"), "Retrying", id="it failed"),
        pytest.param(tenant(is_provisioned=False), "Progressing", id="not yet made"),
    ],
)
def test_a_tenant_that_is_not_ready_says_why(of, reason):
    found = verdict(plan.plan(Seen([of])), "LogTenant", "acme")

    assert found.reason == reason
    assert found.message.endswith(".") or found.message == "no disk"


def test_a_claimed_id_is_stalled_and_named():
    of = tenant(claimed_by_other=True, spec={"tenantId": "taken"})
    found = verdict(plan.plan(Seen([of])), "LogTenant", "acme")

    assert found.is_stalled
    assert "'taken'" in found.message


@pytest.mark.parametrize(
    ("tenants", "of", "reason"),
    [
        pytest.param([], pipeline(), "TenantNotFound", id="no tenant"),
        pytest.param([tenant()], pipeline(of="other"), "TenantNotFound", id="another tenant"),
        pytest.param(
            [tenant()], pipeline(namespace="b"), "TenantNotFound", id="a tenant elsewhere"
        ),
        pytest.param([tenant()], pipeline(suspend=True), "Suspended", id="suspended"),
        pytest.param(
            [tenant(spec={"suspend": True})], pipeline(), "Suspended", id="its tenant is suspended"
        ),
        pytest.param([tenant()], pipeline(problem="no disk"), "Retrying", id="it failed"),
        pytest.param([tenant()], pipeline(is_provisioned=False), "Progressing", id="not yet made"),
        pytest.param(
            [tenant(is_provisioned=False)], pipeline(), "Progressing", id="no place for it yet"
        ),
        pytest.param(
            [tenant(spec={"quotas": {"maxPipelines": 0}})], pipeline(), "QuotaExceeded", id="quota"
        ),
    ],
)
def test_a_pipeline_that_is_not_ready_says_why(tenants, of, reason):
    [found] = [
        found
        for key, found in plan.plan(Seen(tenants, [of])).verdicts.items()
        if key == plan.key_of(of.resource)
    ]

    assert found.reason == reason


@pytest.mark.parametrize(
    ("of", "is_served"),
    [
        pytest.param(pipeline(suspend=True), True, id="suspended: as it was"),
        pytest.param(pipeline(problem="no disk"), True, id="failing: as it was"),
        pytest.param(
            pipeline(problem="no disk", pipeline=None), False, id="failing from its start"
        ),
        pytest.param(pipeline(is_provisioned=False), False, id="not yet made"),
        pytest.param(
            pipeline(problem="no disk", is_provisioned=False), False, id="failing, never made"
        ),
    ],
)
def test_trouble_does_not_take_away_what_was_served(of, is_served):
    assert bool(plan.plan(Seen([tenant()], [of])).served) == is_served


def test_over_the_quota_the_oldest_pipelines_are_served():
    few = tenant(spec={"quotas": {"maxPipelines": 2}})
    pipelines = [pipeline(f"p{n}", made_at=10.0 - n, pipeline=n) for n in range(4)]
    planned = plan.plan(Seen([few], pipelines))

    assert served(planned) == ["p3", "p2"]
    assert verdict(planned, "LogPipeline", "p1").reason == "QuotaExceeded"
    assert verdict(planned, "LogPipeline", "p1").is_stalled


def test_a_quota_counts_the_pipelines_of_its_own_tenant():
    few = [tenant(name, spec={"quotas": {"maxPipelines": 1}}) for name in ("a", "b")]
    planned = plan.plan(Seen(few, [pipeline("x", "a"), pipeline("y", "b", pipeline=2)]))

    assert served(planned) == ["x", "y"]


def test_a_tenant_of_the_same_name_elsewhere_is_another_one():
    planned = plan.plan(
        Seen(
            [tenant(namespace="a", is_provisioned=False), tenant(namespace="b")],
            [pipeline(namespace="b")],
        )
    )

    assert served(planned) == ["web"]


def test_conditions_of_what_is_ready():
    [found] = plan.conditions(None, 7)

    assert (found["type"], found["status"], found["reason"]) == ("Ready", "True", "Reconciled")
    assert found["observedGeneration"] == 7


@pytest.mark.parametrize(
    ("why", "types"),
    [
        pytest.param(plan.Verdict("Retrying", "x"), ["Ready", "Reconciling"], id="work goes on"),
        pytest.param(
            plan.Verdict("QuotaExceeded", "x", is_stalled=True), ["Ready", "Stalled"], id="stalled"
        ),
        pytest.param(plan.Verdict("Suspended", "x"), ["Ready"], id="suspended: at rest"),
    ],
)
def test_conditions_of_what_is_not_ready(why, types):
    found = plan.conditions(why, 1)

    assert [one["type"] for one in found] == types
    assert [one["status"] for one in found] == ["False", "True"][: len(found)]
    assert {one["reason"] for one in found} == {why.reason}


@given(chance=st.binary(min_size=16, max_size=16))
def test_a_generated_id_is_one_that_a_tenant_may_have(chance):
    found = plan.generated_tenant_id(chance)

    assert re.fullmatch("[a-z][a-z2-7]{15}", found)
    assert names.tenant_id(found) == found


few_names = st.sampled_from(["a", "b", "c"])
seen_tenants = st.lists(
    st.builds(
        tenant,
        few_names,
        namespace=few_names,
        spec=st.fixed_dictionaries(
            {
                "suspend": st.booleans(),
                "quotas": st.fixed_dictionaries({"maxPipelines": st.integers(0, 2) | st.none()}),
            }
        ),
        is_provisioned=st.booleans(),
        problem=st.sampled_from(["", "no disk"]),
        claimed_by_other=st.booleans(),
    ),
    max_size=4,
    unique_by=lambda one: plan.key_of(one.resource),
)
seen_pipelines = st.lists(
    st.builds(
        pipeline,
        few_names,
        few_names,
        namespace=few_names,
        suspend=st.booleans(),
        made_at=st.sampled_from([1.0, 2.0]),
        pipeline=st.integers(1, 9) | st.none(),
        is_provisioned=st.booleans(),
        problem=st.sampled_from(["", "no disk"]),
    ),
    max_size=6,
    unique_by=lambda one: plan.key_of(one.resource),
)


@given(tenants=seen_tenants, pipelines=seen_pipelines, seed=st.integers())
def test_the_order_in_which_things_are_seen_decides_nothing(tenants, pipelines, seed):
    one = plan.plan(Seen(tenants, pipelines))
    chance = random.Random(seed)
    other = plan.plan(
        Seen(chance.sample(tenants, len(tenants)), chance.sample(pipelines, len(pipelines)))
    )

    assert one == other


@given(tenants=seen_tenants, pipelines=seen_pipelines)
def test_a_plan_holds_its_own_rules(tenants, pipelines):
    planned = plan.plan(Seen(tenants, pipelines))
    known = {(one.resource.metadata.namespace, one.resource.metadata.name) for one in tenants}

    for one in planned.served:
        resource = one.resource
        found = planned.verdicts.get(plan.key_of(resource))
        assert one.pipeline is not None
        assert (resource.metadata.namespace, resource.spec.tenant_ref.name) in known
        assert found is None or found.reason in ("Suspended", "Retrying")
    for of in tenants:
        most = of.resource.spec.quotas.max_pipelines
        own = [
            one
            for one in planned.served
            if one.resource.spec.tenant_ref.name == of.resource.metadata.name
            and one.resource.metadata.namespace == of.resource.metadata.namespace
        ]
        assert most is None or len(own) <= most
