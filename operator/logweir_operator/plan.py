"""Decide what should run and what each resource's conditions are. Pure: no clock, no I/O.

    gather -> Seen -> plan() -> Plan -> apply

A rule on a resource is a function from it and what was seen to a Verdict or None; the first that
fails is what the user reads in the condition Ready.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Final, Literal

import msgspec

from logweir.core.names import PipelineId, TenantId
from logweir_operator.model import LogPipeline, LogTenant

Role = Literal["ingest", "collector", "query", "keeper"]

_ID_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_ID_ALPHABET: Final = _ID_LETTERS + "234567"
_ID_LENGTH: Final = 16


class Workload(msgspec.Struct, frozen=True):
    """Processes of one role with one binding: a Deployment in Kubernetes, a child of `up`."""

    role: Role
    binding: str
    replicas: int


class Verdict(msgspec.Struct, frozen=True):
    """Why a resource is not ready: a reason of the closed list, and a sentence for a person."""

    reason: str
    message: str
    is_stalled: bool = False


class SeenTenant(msgspec.Struct, frozen=True):
    """A LogTenant, and what is known of it: its id once claimed, the problem of the last try."""

    resource: LogTenant
    tenant: TenantId | None = None
    is_provisioned: bool = False
    problem: str = ""
    claimed_by_other: bool = False


class SeenPipeline(msgspec.Struct, frozen=True):
    """A LogPipeline, its integer id once it has one, and when it was made (any rising number)."""

    resource: LogPipeline
    made_at: float
    pipeline: PipelineId | None = None
    is_provisioned: bool = False
    problem: str = ""


class Seen(msgspec.Struct, frozen=True):
    """All that a decision needs."""

    tenants: Sequence[SeenTenant] = ()
    pipelines: Sequence[SeenPipeline] = ()
    others: Set[tuple[str, str]] = frozenset()
    """Namespaces and names of LogTenants that are there and are not among `tenants`: nobody knows
    yet what they say, or they go."""


class Plan(msgspec.Struct, frozen=True):
    """What should run, which pipelines are served, and why the others are not.

    Verdicts are by (kind, namespace, name); a resource that is ready has none.
    """

    workloads: tuple[Workload, ...]
    served: tuple[SeenPipeline, ...]
    verdicts: Mapping[tuple[str, str, str], Verdict]


def _claimed(tenant: SeenTenant) -> Verdict | None:
    if not tenant.claimed_by_other:
        return None
    wanted = tenant.resource.spec.tenant_id
    return Verdict(
        "IdentityClaimed",
        tenant.problem or f"The tenant id {wanted!r} belongs to another LogTenant.",
        is_stalled=True,
    )


def _suspended(tenant: SeenTenant) -> Verdict | None:
    if not tenant.resource.spec.suspend:
        return None
    return Verdict("Suspended", "spec.suspend is true: nothing of this tenant is changed.")


def _tenant_failed(tenant: SeenTenant) -> Verdict | None:
    return Verdict("Retrying", tenant.problem) if tenant.problem else None


def _tenant_progressing(tenant: SeenTenant) -> Verdict | None:
    if tenant.is_provisioned:
        return None
    return Verdict("Progressing", "The schema, the logins and the journal are being made.")


TENANT_CHECKS: Sequence[Callable[[SeenTenant], Verdict | None]] = (
    _claimed,
    _suspended,
    _tenant_failed,
    _tenant_progressing,
)


def key_of(resource: LogTenant | LogPipeline) -> tuple[str, str, str]:
    """Return what names a resource: kind, namespace, name."""
    return (resource.kind, resource.metadata.namespace, resource.metadata.name)


def plan(seen: Seen) -> Plan:
    """Return what should be true next; the same `seen` always gives the same plan."""
    verdicts: dict[tuple[str, str, str], Verdict] = {}
    for tenant in seen.tenants:
        found = next((v for check in TENANT_CHECKS if (v := check(tenant))), None)
        if found:
            verdicts[key_of(tenant.resource)] = found
    tenants = {_place_of(one.resource): one for one in seen.tenants}
    served: list[SeenPipeline] = []
    counts: Counter[tuple[str, str]] = Counter()
    for pipeline in _oldest_first(seen.pipelines):
        place = _tenant_place_of(pipeline.resource)
        verdict = _pipeline_verdict(
            pipeline, tenants.get(place), counts[place], is_there=place in seen.others
        )
        if verdict:
            verdicts[key_of(pipeline.resource)] = verdict
        is_kept = verdict is None or verdict.reason in ("Suspended", "Retrying")
        if is_kept and pipeline.is_provisioned and pipeline.pipeline is not None:
            served.append(pipeline)
            counts[place] += 1
    return Plan(_workloads(), tuple(served), verdicts)


def _oldest_first(pipelines: Sequence[SeenPipeline]) -> list[SeenPipeline]:
    return sorted(pipelines, key=lambda one: (one.made_at, key_of(one.resource)))


def _workloads() -> tuple[Workload, ...]:
    """One process of each role serves all pipelines of the node."""
    return tuple(Workload(role, "node", 1) for role in ("ingest", "collector", "query", "keeper"))


def _place_of(tenant: LogTenant) -> tuple[str, str]:
    return (tenant.metadata.namespace, tenant.metadata.name)


def _tenant_place_of(pipeline: LogPipeline) -> tuple[str, str]:
    """The tenant that a pipeline refers to: the one of that name in its namespace."""
    return (pipeline.metadata.namespace, pipeline.spec.tenant_ref.name)


def _pipeline_verdict(
    pipeline: SeenPipeline, tenant: SeenTenant | None, others: int, *, is_there: bool
) -> Verdict | None:
    """Why a pipeline is not ready; `others` of its tenant are older and served."""
    resource = pipeline.resource
    name = resource.spec.tenant_ref.name
    if tenant is None and is_there:  # what runs goes on until it is known better
        return Verdict(
            "Retrying", f"LogTenant {name!r} goes, or cannot be carried out: see its conditions."
        )
    if tenant is None:
        return Verdict(
            "TenantNotFound",
            f"There is no LogTenant {name!r} in namespace {resource.metadata.namespace!r}.",
        )
    most = tenant.resource.spec.quotas.max_pipelines
    if most is not None and others >= most:
        return Verdict(
            "QuotaExceeded",
            f"The tenant may have {most} pipelines and has them; the oldest ones are served.",
            is_stalled=True,
        )
    if resource.spec.suspend or tenant.resource.spec.suspend:
        return Verdict("Suspended", "suspend is true: nothing of this pipeline is changed.")
    if pipeline.problem:
        return Verdict("Retrying", pipeline.problem)
    if not tenant.is_provisioned or not pipeline.is_provisioned:
        return Verdict("Progressing", "The tenant's place and the stream are being made.")
    return None


def conditions(verdict: Verdict | None, generation: int) -> list[dict[str, object]]:
    """Return the conditions Ready, Reconciling and Stalled that a verdict means."""

    def one(kind: str, is_true: bool, reason: str, message: str) -> dict[str, object]:
        return {
            "type": kind,
            "status": "True" if is_true else "False",
            "reason": reason,
            "message": message,
            "observedGeneration": generation,
        }

    if verdict is None:
        return [one("Ready", True, "Reconciled", "Everything is as the resource says.")]
    abnormal = "Stalled" if verdict.is_stalled else "Reconciling"
    found = [one("Ready", False, verdict.reason, verdict.message)]
    if verdict.reason != "Suspended":
        found.append(one(abnormal, True, verdict.reason, verdict.message))
    return found


def generated_tenant_id(chance: bytes) -> TenantId:
    """Return a tenant id of 16 random bytes: 16 of [a-z2-7], a letter first."""
    first = _ID_LETTERS[chance[0] % len(_ID_LETTERS)]
    rest = (_ID_ALPHABET[byte % len(_ID_ALPHABET)] for byte in chance[1:_ID_LENGTH])
    return TenantId(first + "".join(rest))
