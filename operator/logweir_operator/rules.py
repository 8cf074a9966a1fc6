"""Rules over several fields of LogTenant and LogPipeline, and what must not change in them. Pure.

Each stands once: as CEL for the API server (`crdgen.py`), as a predicate for everyone else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from logweir_operator.model import LogPipelineSpec, LogTenantSpec, Pod, Resource


class FieldError(msgspec.Struct, frozen=True):
    """One thing that is wrong with a resource: the field's path, and why."""

    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class Rule(msgspec.Struct, frozen=True):
    """A rule over several fields. `cel` is for the API server, at the object that `at` names."""

    at: str
    field: str
    cel: str
    message: str
    holds: Callable[[Any], bool]


def _keys_are_of_one_class(spec: LogTenantSpec) -> bool:
    return all(("ingest" not in key.scopes) or key.scopes == ["ingest"] for key in spec.api_keys)


def _fallback_is_between(spec: LogPipelineSpec) -> bool:
    scaling = spec.collector.autoscaling
    return (
        scaling.fallback_replicas is None
        or scaling.min_replicas <= scaling.fallback_replicas <= scaling.max_replicas
    )


def _budget_is_one(spec: LogPipelineSpec) -> bool:
    budget = spec.ingest.disruption_budget
    return budget is None or (budget.min_available is None) != (budget.max_unavailable is None)


def _labels_are_free(pod: Pod) -> bool:
    return not any(name.startswith(("logweir.dev/", "app.kubernetes.io/")) for name in pod.labels)


_FREE_LABELS: Final = (
    "self.labels.all(k, !k.startsWith('logweir.dev/') && !k.startsWith('app.kubernetes.io/'))"
)
_RESERVED_LABELS: Final = "the prefixes logweir.dev/ and app.kubernetes.io/ are reserved"


RESERVED_TENANT_ID: Final = "platform"
"""Stands for the platform itself where secrets are derived."""

RULES: Final[Mapping[str, Sequence[Rule]]] = {
    "LogTenant": (
        Rule(
            "spec",
            "spec.apiKeys",
            "self.apiKeys.all(k, !('ingest' in k.scopes) || k.scopes.size() == 1)",
            "a key has the scope ingest alone, or scopes of query and admin",
            _keys_are_of_one_class,
        ),
        Rule(
            "spec",
            "spec.apiKeys",
            "self.apiKeys.all(k, self.apiKeys.filter(o, o.name == k.name).size() == 1)",
            "two keys have the same name",
            lambda spec: len({key.name for key in spec.api_keys}) == len(spec.api_keys),
        ),
        Rule(
            "spec",
            "spec.tenantId",
            f"!has(self.tenantId) || self.tenantId != '{RESERVED_TENANT_ID}'",
            f"{RESERVED_TENANT_ID} is reserved",
            lambda spec: spec.tenant_id != RESERVED_TENANT_ID,
        ),
        Rule(
            "spec.credentials.rotation",
            "spec.credentials.rotation.overlapSeconds",
            "self.overlapSeconds < self.intervalSeconds",
            "must be shorter than intervalSeconds",
            lambda spec: (
                spec.credentials.rotation.overlap_seconds
                < spec.credentials.rotation.interval_seconds
            ),
        ),
    ),
    "LogPipeline": (
        Rule(
            "spec.collector.autoscaling",
            "spec.collector.autoscaling.minReplicas",
            "self.minReplicas <= self.maxReplicas",
            "must not be greater than maxReplicas",
            lambda spec: (
                spec.collector.autoscaling.min_replicas <= spec.collector.autoscaling.max_replicas
            ),
        ),
        Rule(
            "spec.collector.autoscaling",
            "spec.collector.autoscaling.fallbackReplicas",
            "!has(self.fallbackReplicas) || (self.fallbackReplicas >= self.minReplicas"
            " && self.fallbackReplicas <= self.maxReplicas)",
            "must lie between minReplicas and maxReplicas",
            _fallback_is_between,
        ),
        Rule(
            "spec.collector.autoscaling",
            "spec.collector.autoscaling.idleCooldownSeconds",
            "self.minReplicas > 0 || self.idleCooldownSeconds >= 30",
            "scaling to zero needs 30 or more",
            lambda spec: (
                spec.collector.autoscaling.min_replicas > 0
                or spec.collector.autoscaling.idle_cooldown_seconds >= 30
            ),
        ),
        Rule(
            "spec.collector",
            "spec.collector.replicas",
            "has(self.replicas) == (self.autoscaling.driver == 'None')",
            "is set with autoscaling.driver None, and only then",
            lambda spec: (
                (spec.collector.replicas is not None)
                == (spec.collector.autoscaling.driver == "None")
            ),
        ),
        Rule(
            "spec.ingest",
            "spec.ingest.disruptionBudget",
            "!has(self.disruptionBudget) || has(self.disruptionBudget.minAvailable)"
            " != has(self.disruptionBudget.maxUnavailable)",
            "set exactly one of minAvailable and maxUnavailable",
            _budget_is_one,
        ),
        Rule(
            "spec.ingest.pod",
            "spec.ingest.pod.labels",
            _FREE_LABELS,
            _RESERVED_LABELS,
            lambda spec: _labels_are_free(spec.ingest.pod),
        ),
        Rule(
            "spec.collector.pod",
            "spec.collector.pod.labels",
            _FREE_LABELS,
            _RESERVED_LABELS,
            lambda spec: _labels_are_free(spec.collector.pod),
        ),
        Rule(
            "spec.exposure",
            "spec.exposure.host",
            "self.type == 'None' || self.host != ''",
            "is required with type Ingress or HTTPRoute",
            lambda spec: spec.exposure.type == "None" or bool(spec.exposure.host),
        ),
        Rule(
            "spec.exposure",
            "spec.exposure.parentRefs",
            "self.type != 'HTTPRoute' || self.parentRefs.size() > 0",
            "is required with type HTTPRoute",
            lambda spec: spec.exposure.type != "HTTPRoute" or bool(spec.exposure.parent_refs),
        ),
    ),
}


def broken_rules(resource: Resource) -> list[FieldError]:
    """Return the rules over several fields that a resource breaks."""
    return [
        FieldError(rule.field, rule.message)
        for rule in RULES[resource.kind]
        if not rule.holds(resource.spec)
    ]


_IMMUTABLE: Final[Mapping[str, Sequence[tuple[str, Callable[[Any], object]]]]] = {
    "LogTenant": (
        ("spec.tenantId", lambda spec: spec.tenant_id),
        ("spec.postgres.profile", lambda spec: spec.postgres.profile),
        ("spec.redis.profile", lambda spec: spec.redis.profile),
    ),
    "LogPipeline": (("spec.tenantRef", lambda spec: spec.tenant_ref.name),),
}


IMMUTABLE: Final = "is immutable; make a new resource instead"


def immutable_fields(kind: str) -> list[str]:
    """Return the fields of a kind that may not change."""
    return [field for field, _ in _IMMUTABLE[kind]]


def changed_for_good(old: Resource, new: Resource) -> list[FieldError]:
    """Return the immutable fields in which `new` differs from `old`."""
    return [
        FieldError(field, IMMUTABLE)
        for field, value in _IMMUTABLE[new.kind]
        if value(old.spec) != value(new.spec)
    ]
