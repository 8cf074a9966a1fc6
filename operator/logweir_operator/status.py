"""What is true of a tenant or a pipeline, as conditions and numbers of its status. Pure.

verdict + live children + decision of the scaler + status before -> status

Ready sums up: True when every part is, for this generation; else it has the reason and the message
of the first part that is not. Reconciling and Stalled are there only while they are True.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from logweir.core.backlog import Sample
from logweir_operator import scaling
from logweir_operator.model import LogPipeline
from logweir_operator.plan import Verdict
from logweir_operator.scaling import Decision

State = Literal["True", "False", "Unknown"]
Object = Mapping[str, Any]

VERDICTS: Final = {
    "Progressing": "It is being made.",
    "Retrying": "Something failed and is tried again; the message says what.",
    "Suspended": "spec.suspend is true, of it or of its tenant: nothing is changed.",
    "Deleting": "It is being deleted; the message says what that waits for.",
    "InvalidSpec": "The resource cannot be carried out as it stands.",
    "IdentityClaimed": "The tenant's id belongs to another LogTenant.",
    "TenantNotFound": "There is no LogTenant of that name in the namespace.",
    "QuotaExceeded": "The tenant has as many pipelines as it may have.",
    "PermissionDenied": "The API server refuses the operator a right that it needs.",
    "ForeignObject": "An object of a child's name is somebody else's.",
}
"""Reasons of a verdict on a whole resource."""

_STARTING: Final = "Pods are being started."
_STUCK: Final = "The newest pods have not become ready in ten minutes."
_PENDING: Final = "Not made yet."
_ROTATION_FAILED: Final = "A rotation is tried again; the old credentials are good."
_EXPOSED: Final = {
    "AwaitingAddress": "No controller has taken the Ingress or HTTPRoute yet.",
    "RouteRejected": "A Gateway refuses the HTTPRoute.",
    "KindNotServed": "The cluster has no HTTPRoute, or the operator may not use it.",
}
_FAILING_PARTS: Final = {
    "Pending": _PENDING,
    "RotationFailed": _ROTATION_FAILED,
    "NotServed": "A Deployment is not there.",
    "RolloutStuck": _STUCK,
    **_EXPOSED,
}
"""Reasons that Ready takes over from the first part that is not so."""

REASONS: Final[Mapping[str, Mapping[str, str]]] = {
    "Ready": {
        "Reconciled": "Everything is as the resource says.",
        **VERDICTS,
        **_FAILING_PARTS,
    },
    "Reconciling": {
        "Progressing": VERDICTS["Progressing"],
        "Retrying": VERDICTS["Retrying"],
        "Deleting": VERDICTS["Deleting"],
        "TenantNotFound": VERDICTS["TenantNotFound"],
        "PermissionDenied": VERDICTS["PermissionDenied"],
        "ChildrenProgressing": "Children are there and not ready yet.",
    },
    "Stalled": {
        name: VERDICTS[name]
        for name in ("InvalidSpec", "IdentityClaimed", "QuotaExceeded", "ForeignObject")
    },
    "DatabaseReady": {
        "Provisioned": "Schema, logins and rights are as planned.",
        "Pending": _PENDING,
        "DatabaseUnreachable": "PostgreSQL refused, or did not answer.",
    },
    "RedisReady": {
        "Provisioned": "The users and limits are as planned.",
        "Pending": _PENDING,
        "RedisUnreachable": "Redis refused, or did not answer.",
    },
    "CredentialsReady": {
        "Current": "The Secrets hold what is in force.",
        "Pending": _PENDING,
        "Rotating": "New credentials are in use, the old ones still good.",
        "RotationFailed": _ROTATION_FAILED,
    },
    "IngestAvailable": {
        "MinimumReplicasAvailable": "Enough pods are ready.",
        "Progressing": _STARTING,
        "RolloutStuck": _STUCK,
        "NotServed": "There is no Deployment, as nothing is to come in.",
    },
    "CollectorAvailable": {
        "MinimumReplicasAvailable": "Enough pods are ready.",
        "ScaledToZero": "Nothing waits, so no collector runs; one record wakes one.",
        "Progressing": _STARTING,
        "RolloutStuck": _STUCK,
        "NotServed": "There is no Deployment.",
    },
    "Exposed": {
        "Accepted": "The Ingress has an address, or each Gateway has accepted the HTTPRoute.",
        **_EXPOSED,
    },
    "ScalingActive": {
        "Sampling": "The journal is looked at, and collectors follow.",
        "ScaledToZero": "Nothing waits; the journal is looked at every 2 s.",
        "AtMaximum": "More collectors would be needed than there may be.",
        "MetricsUnavailable": "The journal cannot be asked; the collectors stay as they are.",
        "ManagedByKeda": "KEDA decides.",
        "Manual": "spec.collector.replicas decides.",
        "Pending": "Not looked at yet.",
    },
    "Fresh": {
        "WithinGoal": "Records can be found within spec.slo.queryableWithinSeconds.",
        "Behind": "Records wait for longer than that.",
        "Unknown": "The journal could not be asked.",
    },
}
"""What each reason of each condition means; there are no others."""


class Part(msgspec.Struct, frozen=True):
    """One condition, before it is dated. `is_needed`: without it nothing is ready."""

    type: str
    status: State
    reason: str
    message: str
    is_needed: bool = True


class TenantFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a LogTenant.

    Attributes:
        generation: of the resource.
        verdict: why it is not ready; None: it is.
        is_made: whether its place in the servers was made once.
        failing: which server did not let it be made right; empty: none, or it is not known.
        rest: fields of its status that others know: tenantId, credentials, storage, apiKeys, ...
    """

    generation: int
    verdict: Verdict | None = None
    is_made: bool = False
    failing: Literal["", "postgres", "redis"] = ""
    rest: Mapping[str, Any] = {}


class PipelineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a LogPipeline.

    Attributes:
        resource: the LogPipeline; None: the model does not understand it.
        generation: of the resource.
        verdict: why it is not ready; None: only its children decide.
        ingest: the live Deployment; None: there is none.
        collector: likewise.
        route: the live Ingress or HTTPRoute; None: there is none.
        served_kinds: optional kinds that may be made.
        decision: of the scaler; None: none yet.
        sample: of the journal, and when it was taken.
        fresh: status, reason and message of `scaling.fresh`.
        selector: of the collectors' pods, as text.
        rest: fields of its status that others know: pipelineId, url, lastHandledReconcileAt.
    """

    resource: LogPipeline | None
    generation: int
    verdict: Verdict | None = None
    ingest: Object | None = None
    collector: Object | None = None
    route: Object | None = None
    served_kinds: frozenset[str] = frozenset()
    decision: Decision | None = None
    sample: tuple[Sample, datetime] | None = None
    fresh: tuple[State, str, str] | None = None
    selector: str = ""
    rest: Mapping[str, Any] = {}


def tenant_status(facts: TenantFacts, before: Object, now: datetime) -> dict[str, Any]:
    """Return the status of a LogTenant; `before` is the one that it has."""
    parts = [
        _server(facts, "DatabaseReady", "postgres", "DatabaseUnreachable"),
        _server(facts, "RedisReady", "redis", "RedisUnreachable"),
        _credentials(facts),
    ]
    return {
        **facts.rest,
        "observedGeneration": facts.generation,
        "conditions": _conditions(facts.generation, facts.verdict, parts, before, now),
    }


def pipeline_status(facts: PipelineFacts, before: Object, now: datetime) -> dict[str, Any]:
    """Return the status of a LogPipeline; `before` is the one that it has."""
    is_paused = facts.verdict is not None and facts.verdict.reason == "Suspended"
    # After a start it is not looked at yet: what was said last stands until it is.
    kept = before if facts.decision is None and not is_paused else {}
    parts = _pipeline_parts(facts, kept)
    status: dict[str, Any] = {
        **facts.rest,
        "observedGeneration": facts.generation,
        "conditions": _conditions(facts.generation, facts.verdict, parts, before, now),
    }
    if facts.ingest is not None:
        ready, wanted = _count(facts.ingest, "readyReplicas"), _wanted(facts.ingest)
        status["ingest"] = {
            "replicas": _count(facts.ingest, "replicas"),
            "readyReplicas": ready,
            "ready": f"{ready}/{wanted}",
        }
    if facts.collector is not None:
        status["collector"] = _collector(facts, before, now)
    if facts.sample is not None:
        status["lag"] = _lag(facts, *facts.sample, before.get("lag") or {})
    elif "lag" in kept:
        status["lag"] = kept["lag"]
    return status


# ---- conditions --------------------------------------------------------------------------------


def _conditions(
    generation: int,
    verdict: Verdict | None,
    parts: Sequence[Part],
    before: Object,
    now: datetime,
) -> list[dict[str, Any]]:
    failing = next((one for one in parts if one.is_needed and one.status != "True"), None)
    found: list[Part] = []
    if verdict is not None:
        found.append(Part("Ready", "False", verdict.reason, verdict.message))
        if verdict.is_stalled:
            found.append(Part("Stalled", "True", verdict.reason, verdict.message))
        elif verdict.reason != "Suspended":
            found.append(Part("Reconciling", "True", verdict.reason, verdict.message))
    elif failing is not None:
        found.append(Part("Ready", "False", failing.reason, failing.message))
        found.append(Part("Reconciling", "True", "ChildrenProgressing", failing.message))
    else:
        found.append(Part("Ready", "True", "Reconciled", "Everything is as the resource says."))
    old = {one["type"]: one for one in before.get("conditions") or ()}
    return [_dated(one, generation, old.get(one.type) or {}, now) for one in (*found, *parts)]


def _dated(part: Part, generation: int, old: Object, now: datetime) -> dict[str, Any]:
    since = old.get("lastTransitionTime") if old.get("status") == part.status else None
    return {
        "type": part.type,
        "status": part.status,
        "reason": part.reason,
        "message": part.message,
        "observedGeneration": generation,
        "lastTransitionTime": since or _text(now),
    }


def _text(at: datetime) -> str:
    """A moment as Kubernetes writes it."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _server(facts: TenantFacts, kind: str, server: str, reason: str) -> Part:
    is_tried = facts.verdict is not None and facts.verdict.reason == "Retrying"
    if facts.failing == server and facts.verdict is not None and is_tried:
        return Part(kind, "False", reason, facts.verdict.message)
    if facts.is_made:
        return Part(kind, "True", "Provisioned", REASONS[kind]["Provisioned"])
    return Part(kind, "Unknown", "Pending", _PENDING)


def _credentials(facts: TenantFacts) -> Part:
    kind = "CredentialsReady"
    known = facts.rest.get("credentials") or {}
    if not facts.is_made:
        return Part(kind, "Unknown", "Pending", _PENDING)
    if problem := known.get("problem"):
        return Part(kind, "False", "RotationFailed", str(problem))
    reason = "Current" if known.get("phase", "steady") == "steady" else "Rotating"
    return Part(kind, "True", reason, REASONS[kind][reason])


def _pipeline_parts(facts: PipelineFacts, kept: Object) -> list[Part]:
    found = [
        _available("IngestAvailable", facts.ingest),
        _collectors(facts.collector),
    ]
    if facts.resource is not None and facts.resource.spec.exposure.type != "None":
        found.append(_exposed(facts, facts.resource.spec.exposure.type))
    old = {one["type"]: one for one in kept.get("conditions") or ()}
    if facts.decision is None and (was := old.get("ScalingActive")) is not None:
        found.append(_again(was))
    else:
        found.append(_scaling(facts.decision))
    if facts.fresh is not None:
        found.append(Part("Fresh", *facts.fresh, is_needed=False))
    elif (was := old.get("Fresh")) is not None:
        found.append(_again(was))
    return found


def _again(was: Object) -> Part:
    """A condition as it was."""
    return Part(was["type"], was["status"], was["reason"], was["message"], is_needed=False)


def _available(kind: str, live: Object | None) -> Part:
    if live is None:
        return Part(kind, "False", "NotServed", REASONS[kind]["NotServed"])
    wanted, available = _wanted(live), _count(live, "availableReplicas")
    name = live["metadata"]["name"]
    is_seen = (live.get("status") or {}).get("observedGeneration", 0) >= live["metadata"].get(
        "generation", 0
    )
    stuck = _condition(live.get("status"), "Progressing")
    if stuck.get("reason") == "ProgressDeadlineExceeded":
        message = (
            f"{available} of {wanted} pods of Deployment {name} are ready and no more become so;"
            " look at its newest pods: kubectl describe."
        )
        return Part(kind, "False", "RolloutStuck", message)
    if not is_seen or available < wanted:
        return Part(
            kind, "False", "Progressing", f"{available} of {wanted} pods of {name} are ready."
        )
    updated = _count(live, "updatedReplicas")
    if updated < wanted or _count(live, "replicas") > updated:
        message = f"{updated} of {wanted} pods of {name} are of the newest kind."
        return Part(kind, "False", "Progressing", message)
    message = f"{available} of {wanted} pods of {name} are ready."
    return Part(kind, "True", "MinimumReplicasAvailable", message)


def _collectors(live: Object | None) -> Part:
    if live is not None and _wanted(live) == 0:
        kind = "CollectorAvailable"
        return Part(kind, "True", "ScaledToZero", REASONS[kind]["ScaledToZero"])
    return _available("CollectorAvailable", live)


def _exposed(facts: PipelineFacts, kind: str) -> Part:
    if kind == "HTTPRoute" and kind not in facts.served_kinds:
        message = "The cluster has no HTTPRoute; install the Gateway API, or use an Ingress."
        return Part("Exposed", "False", "KindNotServed", message)
    waiting = f"No controller has taken the {kind} yet."
    live = facts.route
    if live is None:
        return Part("Exposed", "False", "AwaitingAddress", waiting)
    status = live.get("status") or {}
    if kind == "Ingress":
        if (status.get("loadBalancer") or {}).get("ingress"):
            return Part("Exposed", "True", "Accepted", "The Ingress has an address.")
        return Part("Exposed", "False", "AwaitingAddress", waiting)
    parents = [_condition(one, "Accepted") for one in status.get("parents") or ()]
    for one in parents:
        if one.get("status") == "False":
            message = f"A Gateway refuses the HTTPRoute: {one.get('message') or one['reason']}"
            return Part("Exposed", "False", "RouteRejected", message)
    asked = len(live["spec"].get("parentRefs") or ())
    if sum(one.get("status") == "True" for one in parents) < asked:
        return Part("Exposed", "False", "AwaitingAddress", waiting)
    return Part("Exposed", "True", "Accepted", "Each Gateway has accepted the HTTPRoute.")


def _scaling(decision: Decision | None) -> Part:
    kind = "ScalingActive"
    if decision is None:
        return Part(kind, "Unknown", "Pending", REASONS[kind]["Pending"], is_needed=False)
    is_active = decision.reason != "MetricsUnavailable"
    state: State = "True" if is_active else "False"
    return Part(kind, state, decision.reason, decision.message, is_needed=False)


def _condition(status: Object | None, kind: str) -> Object:
    found: Sequence[Object] = (status or {}).get("conditions") or ()
    return next((one for one in found if one.get("type") == kind), {})


# ---- numbers -----------------------------------------------------------------------------------


def _wanted(live: Object) -> int:
    found: int = live["spec"].get("replicas", 1)
    return found


def _count(live: Object, name: str) -> int:
    found: int = (live.get("status") or {}).get(name, 0)
    return found


def _collector(facts: PipelineFacts, before: Object, now: datetime) -> dict[str, Any]:
    live = facts.collector or {}
    wanted = facts.decision.replicas if facts.decision is not None else _wanted(live)
    found: dict[str, Any] = {
        "replicas": _count(live, "replicas"),
        "readyReplicas": _count(live, "readyReplicas"),
        "desiredReplicas": wanted,
        "selector": facts.selector,
    }
    old = before.get("collector") or {}
    if "desiredReplicas" in old and old["desiredReplicas"] != wanted and facts.decision is not None:
        found["lastScaleTime"] = _text(now)
        found["lastScaleReason"] = facts.decision.message
    else:
        found |= {name: old[name] for name in ("lastScaleTime", "lastScaleReason") if name in old}
    return found


def _lag(facts: PipelineFacts, sample: Sample, at: datetime, before: Object) -> dict[str, Any]:
    """What a sample says; rates that are not known yet, after a start, are those of before."""
    found: dict[str, Any] = {
        "entries": sample.entries,
        "backlogBytes": sample.backlog_bytes,
        "sampledAt": _text(at),
    }
    if sample.oldest_age_s is not None:
        found["oldestSeconds"] = int(sample.oldest_age_s)
    if facts.decision is not None:
        memory = facts.decision.memory
        rates = {"arrivalBytesPerSecond": memory.arrival, "drainBytesPerSecond": memory.drain}
        found |= {name: before[name] for name in rates if name in before}
        found |= {name: int(rate) for name, rate in rates.items() if rate is not None}
        found["drain"] = scaling.drain_text(sample, memory)
    return found
