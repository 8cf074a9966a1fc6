"""What the status of tenants and pipelines says, and the events that come of its changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from viewing import pipeline_view

from logweir.core.backlog import Sample
from logweir_operator import events, scaling, status
from logweir_operator.plan import Verdict
from logweir_operator.status import PipelineFacts, TenantFacts

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
KEY = ("LogPipeline", "team", "web")
INGRESS = {"exposure": {"type": "Ingress", "host": "a.example"}}
ROUTE = {"exposure": {"type": "HTTPRoute", "host": "a.example", "parentRefs": [{"name": "g"}]}}


def deployment(name="web-ingest", wanted=2, available=2, seen=3, **more):
    return {
        "metadata": {"name": name, "generation": 3},
        "spec": {"replicas": wanted},
        "status": {
            "observedGeneration": seen,
            "replicas": wanted,
            "readyReplicas": available,
            "availableReplicas": available,
            "updatedReplicas": wanted,
            **more,
        },
    }


def decision(reason="Sampling", replicas=2):
    return scaling.Decision(replicas, reason, "As it should be.", scaling.Memory(), 0.0)


def pipeline(spec=None, **rest) -> PipelineFacts:
    known = {
        "resource": pipeline_view(spec=spec).resource,
        "generation": 5,
        "ingest": deployment(),
        "collector": deployment("web-collector"),
        "decision": decision(),
        "fresh": ("True", "WithinGoal", "Records can be found."),
    }
    return PipelineFacts(**(known | rest))


def accepted(state="True"):
    parents = [{"conditions": [{"type": "Accepted", "status": state, "reason": "Accepted"}]}]
    return {"spec": {"parentRefs": [{"name": "g"}]}, "status": {"parents": parents}}


def conditions(found) -> dict:
    return {one["type"]: (one["status"], one["reason"]) for one in found["conditions"]}


def of_pipeline(before=None, now=NOW, **rest):
    return status.pipeline_status(pipeline(**rest), before or {}, now)


def of_tenant(**rest):
    return status.tenant_status(TenantFacts(**({"generation": 1} | rest)), {}, NOW)


def test_a_pipeline_whose_parts_are_all_so_is_ready_and_nothing_abnormal_is_there():
    found = conditions(of_pipeline())

    assert found["Ready"] == ("True", "Reconciled")
    assert found["Fresh"] == ("True", "WithinGoal")
    assert {"Reconciling", "Stalled"}.isdisjoint(found)


def test_ready_has_the_reason_of_the_first_part_that_fails():
    found = conditions(of_pipeline(ingest=deployment(available=1)))

    assert found["Ready"] == ("False", "Progressing")
    assert found["Reconciling"] == ("True", "ChildrenProgressing")


def test_a_deployment_that_has_not_seen_its_own_generation_is_not_available_yet():
    assert conditions(of_pipeline(ingest=deployment(seen=2)))["Ready"][0] == "False"


@pytest.mark.parametrize("counts", [{"updatedReplicas": 1}, {"updatedReplicas": 2, "replicas": 3}])
def test_old_pods_that_are_ready_do_not_make_a_rollout_ready(counts):
    found = conditions(of_pipeline(ingest=deployment("web-ingest", 2, 2, **counts)))

    assert found["IngestAvailable"] == ("False", "Progressing")
    assert found["Ready"] == ("False", "Progressing")


def test_what_was_measured_stands_after_a_start_until_it_is_measured_again():
    before = of_pipeline()
    after = of_pipeline(before, NOW + timedelta(hours=1), decision=None, sample=None, fresh=None)

    assert after == before


def test_being_behind_or_blind_is_told_but_does_not_take_away_ready():
    found = conditions(
        of_pipeline(
            decision=decision("MetricsUnavailable"), fresh=("False", "Behind", "They wait.")
        )
    )

    assert found["Ready"][0] == "True"
    assert found["ScalingActive"] == ("False", "MetricsUnavailable")
    assert found["Fresh"] == ("False", "Behind")


def test_a_suspended_resource_settles():
    found = of_pipeline(verdict=Verdict("Suspended", "suspend is true."))

    assert conditions(found)["Ready"] == ("False", "Suspended")
    assert {"Reconciling", "Stalled"}.isdisjoint(conditions(found))
    assert {one["observedGeneration"] for one in found["conditions"]} == {5}


def test_what_waits_for_a_person_is_stalled_and_not_reconciling():
    found = conditions(of_pipeline(verdict=Verdict("ForeignObject", "Whose?", is_stalled=True)))

    assert found["Stalled"] == ("True", "ForeignObject")
    assert "Reconciling" not in found


STUCK = {"conditions": [{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]}
VERDICTS = {
    reason: Verdict(reason, "Why.", is_stalled=reason in status.REASONS["Stalled"])
    for reason in status.VERDICTS
}
SERVED = frozenset({"HTTPRoute"})
REACHED = [
    *(lambda v=v: of_pipeline(verdict=v) for v in VERDICTS.values()),
    *(lambda r=r: of_pipeline(decision=decision(r)) for r in scaling.Reason.__args__),
    *(
        lambda f=f: of_pipeline(fresh=f)
        for f in (("True", "WithinGoal", ""), ("False", "Behind", ""), ("Unknown", "Unknown", ""))
    ),
    lambda: of_pipeline(decision=None, ingest=None, collector=None),
    lambda: of_pipeline(ingest=deployment(available=0), collector=deployment(available=0)),
    lambda: of_pipeline(ingest=deployment(**STUCK), collector=deployment(**STUCK)),
    lambda: of_pipeline(collector=deployment(wanted=0, available=0)),
    lambda: of_pipeline(spec=INGRESS),
    lambda: of_pipeline(spec=INGRESS, route={"status": {"loadBalancer": {"ingress": [{}]}}}),
    lambda: of_pipeline(spec=ROUTE),
    lambda: of_pipeline(spec=ROUTE, served_kinds=SERVED, route=accepted()),
    lambda: of_pipeline(spec=ROUTE, served_kinds=SERVED, route=accepted("False")),
    lambda: of_tenant(),
    lambda: of_tenant(is_made=True),
    lambda: of_tenant(verdict=VERDICTS["Retrying"], failing="postgres"),
    lambda: of_tenant(verdict=VERDICTS["Retrying"], failing="redis"),
    lambda: of_tenant(is_made=True, rest={"credentials": {"phase": "overlapping"}}),
    lambda: of_tenant(is_made=True, rest={"credentials": {"problem": "No."}}),
]


def test_every_reason_is_in_the_list_and_every_reason_of_the_list_is_reached():
    reached = {(one["type"], one["reason"]) for make in REACHED for one in make()["conditions"]}

    assert reached == {(kind, name) for kind, names in status.REASONS.items() for name in names}


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([None, *VERDICTS.values()]))))
def test_a_condition_is_dated_when_its_status_changes_and_then_alone(steps):
    found, at = of_pipeline(), NOW
    for available, verdict in steps:
        at += timedelta(seconds=10)
        before = found
        found = of_pipeline(before, at, ingest=deployment(available=available), verdict=verdict)
        old = {one["type"]: one for one in before["conditions"]}
        for one in found["conditions"]:
            was = old.get(one["type"], {})
            is_same = was.get("status") == one["status"]
            is_old = one["lastTransitionTime"] == was.get("lastTransitionTime")
            assert is_same == is_old


def test_the_numbers_of_a_pipeline_are_those_of_its_deployments_and_its_journal():
    sample = Sample(1.0, backlog_bytes=500, entries=4, oldest_age_s=3.7)
    found = of_pipeline(sample=(sample, NOW), decision=decision(replicas=3))

    assert found["ingest"] == {"replicas": 2, "readyReplicas": 2, "ready": "2/2"}
    assert found["collector"]["desiredReplicas"] == 3
    assert found["lag"]["backlogBytes"] == 500
    assert found["lag"]["oldestSeconds"] == 3


def test_the_last_change_of_collectors_is_kept_until_the_next():
    first = of_pipeline(decision=decision(replicas=1))
    second = of_pipeline(first, decision=decision(replicas=4))
    third = of_pipeline(second, NOW + timedelta(hours=1), decision=decision(replicas=4))

    assert "lastScaleTime" not in first["collector"]
    assert second["collector"]["lastScaleTime"] == "2026-11-25T12:00:00Z"
    assert third["collector"] == second["collector"]


# ---- events ------------------------------------------------------------------------------------


def reasons(found) -> list[str]:
    return [one.reason for one in found]


def test_what_becomes_ready_is_told_once():
    ready = of_pipeline()

    assert reasons(events.between({}, ready)) == ["Provisioned"]
    assert events.between(ready, ready) == []


@pytest.mark.parametrize(("to", "reason"), [(4, "ScaledUp"), (1, "ScaledDown")])
def test_a_new_number_of_collectors_is_told_with_why(to, reason):
    before = of_pipeline()
    [event] = events.between(before, of_pipeline(before, decision=decision(replicas=to)))

    assert (event.type, event.reason) == ("Normal", reason)
    assert event.message == f"Collectors from 2 to {to}: As it should be."


def test_new_credentials_drift_and_a_standstill_are_told():
    def tenant(revision, **rest):
        return of_tenant(is_made=True, rest={"credentials": {"revision": revision}}, **rest)

    stalled = tenant(2, verdict=Verdict("InvalidSpec", "Why.", is_stalled=True))
    found = events.between(tenant(1), stalled, ["Service/web-ingest.spec.type"])

    assert reasons(found) == ["CredentialsRotated", "DriftCorrected", "Stalled"]
    assert [one.type for one in found] == ["Normal", "Normal", "Warning"]
    assert "InvalidSpec: Why." in found[2].message


def test_the_same_event_is_posted_again_after_an_hour_and_no_sooner():
    memory = events.Memory()
    event = events.Event("Warning", "Stalled", "Why.")

    assert memory.fresh(KEY, [event], 0.0) == [event]
    assert memory.fresh(KEY, [event], 3599.0) == []
    assert memory.fresh(("LogPipeline", "team", "other"), [event], 3599.0) == [event]
    assert memory.fresh(KEY, [event], 3601.0) == [event]
    memory.forget(KEY)
    assert memory.fresh(KEY, [event], 3602.0) == [event]
