"""LogTenant and LogPipeline, `logweir.dev/v1alpha1`: one model for operator, `up`, CLI and docs.

camelCase on the wire, snake_case here; bytes and seconds as units. Bounds of single fields stand in
their types, rules over several fields in `RULES`, each once: as CEL for the API server and as a
predicate for everyone else.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

GROUP: Final = "logweir.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

_GIB: Final = 1 << 30
# In Python `$` also matches before a last line break; a CRD has `$` where these have `\\Z`.
_NAME: Final = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?\\Z"
_TENANT_ID: Final = "^[a-z][a-z0-9-]{1,30}[a-z0-9]\\Z"

Name = Annotated[str, Meta(min_length=1, max_length=40, pattern=_NAME)]
Text63 = Annotated[str, Meta(max_length=63)]
Days = Annotated[int, Meta(ge=1, le=3650)]
Positive = Annotated[int, Meta(ge=1, le=1 << 53)]
Replicas = Annotated[int, Meta(ge=0, le=1000)]
UpToThousand = Annotated[int, Meta(ge=1, le=1000)]
Quantity = int | Annotated[str, Meta(pattern="^[0-9]+(\\.[0-9]+)?(m|Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?\\Z")]
StringMap = Annotated[dict[str, str], Meta(max_length=32)]


def _described(text: str) -> Meta:
    return Meta(description=text)


class _Part(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Base of all parts of a resource: an unknown field is refused, not ignored."""


class Metadata(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The part of Kubernetes' metadata that matters here; the rest is read over."""

    name: Name
    namespace: Annotated[str, Meta(max_length=63, pattern=_NAME)] = "default"
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class TenantPostgres(_Part, frozen=True):
    """Where the tenant's schema is, and how much of the server it may use."""

    profile: Annotated[
        Text63, _described("Name of a PostgreSQL installation in the operator's configuration.")
    ] = "default"
    connection_limit: Annotated[
        int, Meta(ge=2, le=500, description="Connections of each of the tenant's logins.")
    ] = 40


class TenantRedis(_Part, frozen=True):
    """Where the tenant's journal is."""

    profile: Annotated[
        Text63, _described("Name of a Redis installation in the operator's configuration.")
    ] = "default"


class Retention(_Part, frozen=True):
    """How long records are kept: the older of both bounds wins."""

    days: Annotated[Days, _described("Records older than this are not found any more.")] = 30
    bytes: Annotated[
        Positive | None, _described("Stored bytes over which the oldest segments are deleted.")
    ] = None


class NamespaceQuota(_Part, frozen=True):
    """Content of a ResourceQuota that is kept in the tenant's namespace."""

    hard: Annotated[dict[str, Quantity], Meta(min_length=1, max_length=32)]


class Quotas(_Part, frozen=True):
    """What the tenant may use; a quota that is left out is unlimited, but for the buffer."""

    records_per_second: Annotated[Positive | None, _described("Records a second; then 429.")] = None
    bytes_per_second: Annotated[
        Positive | None, _described("Decoded bytes a second; then 429.")
    ] = None
    buffer_bytes: Annotated[
        int, Meta(ge=1 << 20, le=1 << 50, description="Bytes in the journal; then 429.")
    ] = _GIB
    stored_bytes: Annotated[Positive | None, _described("Bytes in the store; then 429.")] = None
    query_concurrency: Annotated[
        UpToThousand | None, _described("Queries at a time; then 429.")
    ] = None
    query_scan_bytes: Annotated[
        Positive | None, _described("Bytes that one query may read; then it stops.")
    ] = None
    max_pipelines: Annotated[Replicas | None, _described("Pipelines; the oldest ones win.")] = None
    namespace_quota: NamespaceQuota | None = None


class TenantKey(_Part, frozen=True):
    """An API key that exists because the tenant's resource says so."""

    name: Name
    scopes: Annotated[
        list[Literal["ingest", "query", "admin"]],
        Meta(min_length=1, max_length=2, description="[ingest], or of [query, admin]."),
    ]
    pipeline: Annotated[
        Name | None, _described("The one pipeline that the key is good for; left out: all.")
    ] = None
    enabled: Annotated[bool, _described("false revokes the key.")] = True
    expires_at: Annotated[
        Annotated[dt.datetime, Meta(tz=True)] | None,
        _described("When the key ends, with its time zone; left out: never."),
    ] = None
    generation: Annotated[int, Meta(ge=1, le=1 << 31, description="Add 1 to roll the key.")] = 1


class Rotation(_Part, frozen=True):
    """How the tenant's passwords are changed."""

    enabled: bool = False
    interval_seconds: Annotated[int, Meta(ge=3600, le=10 * 365 * 86400)] = 90 * 86400
    overlap_seconds: Annotated[int, Meta(ge=60, le=30 * 86400)] = 86400


class Credentials(_Part, frozen=True):
    """The tenant's passwords."""

    rotation: Rotation = Rotation()


class TenantNetworkPolicy(_Part, frozen=True):
    """The default-deny policy of the tenant's pods."""

    enabled: bool = True


class LogTenantSpec(_Part, frozen=True):
    """Who owns logs: one schema, one set of logins, quotas and retention."""

    display_name: Annotated[str, Meta(max_length=128, description="For people.")] = ""
    tenant_id: Annotated[
        Annotated[str, Meta(pattern=_TENANT_ID)] | None,
        _described("Names the schema and the journal's keys; left out: generated once."),
    ] = None
    suspend: Annotated[bool, _described("true: nothing of the tenant is changed.")] = False
    read_only: Annotated[bool, _described("true: ingest answers 403.")] = False
    deletion_policy: Literal["Retain", "Delete"] = "Retain"
    deletion_protection: bool = False
    postgres: TenantPostgres = TenantPostgres()
    redis: TenantRedis = TenantRedis()
    retention: Retention = Retention()
    quotas: Quotas = Quotas()
    api_keys: Annotated[list[TenantKey], Meta(max_length=32)] = []
    credentials: Credentials = Credentials()
    network_policy: TenantNetworkPolicy = TenantNetworkPolicy()


class TenantRef(_Part, frozen=True):
    """The LogTenant of the same namespace."""

    name: Name


class Slo(_Part, frozen=True):
    """What the pipeline promises its readers."""

    queryable_within_seconds: Annotated[
        float,
        Meta(gt=0, le=3600, description="Age at which a record can be found; a goal."),
        msgspec.Meta(extra_json_schema={"x-logweir-unit": "seconds"}),
    ] = 2.0


class PipelineRetention(_Part, frozen=True):
    """A retention shorter than the tenant's."""

    days: Days | None = None


class Resources(_Part, frozen=True):
    """Requests and limits of a container."""

    requests: Annotated[dict[str, Quantity], Meta(max_length=8)] = {}
    limits: Annotated[dict[str, Quantity], Meta(max_length=8)] = {}


class DisruptionBudget(_Part, frozen=True):
    """Exactly one of the two."""

    min_available: int | str | None = None
    max_unavailable: int | str | None = None


class PullSecret(_Part, frozen=True):
    """A Secret to pull images with."""

    name: Annotated[str, Meta(max_length=253)]


class Pod(_Part, frozen=True):
    """The safe part of a pod's template: no volumes, no security context, no host fields."""

    labels: StringMap = {}
    annotations: StringMap = {}
    node_selector: Annotated[dict[str, str], Meta(max_length=16)] = {}
    priority_class_name: Annotated[str, Meta(max_length=253)] = ""
    image_pull_secrets: Annotated[list[PullSecret], Meta(max_length=8)] = []
    tolerations: Annotated[list[dict[str, Any]], Meta(max_length=16)] = []
    affinity: dict[str, Any] = {}
    topology_spread_constraints: Annotated[list[dict[str, Any]], Meta(max_length=8)] = []


class Ingest(_Part, frozen=True):
    """The ingest Deployment of a pipeline."""

    replicas: Annotated[int, Meta(ge=1, le=100)] = 2
    resources: Resources = Resources()
    disruption_budget: DisruptionBudget | None = None
    pod: Pod = Pod()


class ScaleUp(_Part, frozen=True):
    """How fast collectors are added."""

    stabilization_window_seconds: Annotated[int, Meta(ge=0, le=3600)] = 0
    max_percent_per_minute: Annotated[int, Meta(ge=1, le=10000)] = 300
    max_pods_per_minute: Annotated[int, Meta(ge=1, le=1000)] = 8


class ScaleDown(_Part, frozen=True):
    """How fast collectors are taken away."""

    stabilization_window_seconds: Annotated[int, Meta(ge=0, le=3600)] = 300
    max_percent_per_minute: Annotated[int, Meta(ge=1, le=100)] = 50


class Autoscaling(_Part, frozen=True):
    """How many collectors run, from the journal's backlog."""

    driver: Literal["Internal", "KEDA", "None"] = "Internal"
    min_replicas: Replicas = 1
    max_replicas: Annotated[int, Meta(ge=1, le=1000)] = 10
    target_backlog_bytes: Annotated[
        int, Meta(ge=1 << 16, le=1 << 40, description="Backlog that one collector may have.")
    ] = 16 << 20
    target_drain_seconds: Annotated[int, Meta(ge=5, le=86400)] = 120
    tolerance_percent: Annotated[int, Meta(ge=0, le=50)] = 10
    idle_cooldown_seconds: Annotated[int, Meta(ge=0, le=86400)] = 300
    fallback_replicas: Replicas | None = None
    scale_up: ScaleUp = ScaleUp()
    scale_down: ScaleDown = ScaleDown()


class Collector(_Part, frozen=True):
    """The collector Deployment of a pipeline."""

    replicas: Replicas | None = None
    resources: Resources = Resources()
    pod: Pod = Pod()
    autoscaling: Autoscaling = Autoscaling()


class ParentRef(_Part, frozen=True):
    """A Gateway that routes to the pipeline."""

    name: Annotated[str, Meta(max_length=253)]
    namespace: Text63 = ""
    section_name: Annotated[str, Meta(max_length=253)] = ""


class Exposure(_Part, frozen=True):
    """How the pipeline is reached from outside of the cluster."""

    type: Literal["None", "Ingress", "HTTPRoute"] = "None"
    host: Annotated[str, Meta(max_length=253)] = ""
    ingress_class_name: Annotated[str, Meta(max_length=253)] = ""
    annotations: StringMap = {}
    tls_secret_name: Annotated[str, Meta(max_length=253)] = ""
    parent_refs: Annotated[list[ParentRef], Meta(max_length=4)] = []


class PipelineNetworkPolicy(_Part, frozen=True):
    """Who may connect to the pipeline's ingest."""

    enabled: bool = True
    ingress_namespaces: Annotated[list[Text63], Meta(max_length=16)] = []


class Monitoring(_Part, frozen=True):
    """ServiceMonitor and PrometheusRule; Auto makes them when their CRDs are served."""

    mode: Literal["Auto", "Enabled", "Disabled"] = "Auto"
    lag_alert_seconds: Annotated[int, Meta(ge=10, le=86400)] = 600


LabelPath = Annotated[str, Meta(min_length=1, max_length=128, pattern="^[A-Za-z0-9_./-]+\\Z")]


class LogPipelineSpec(_Part, frozen=True):
    """One way in: an ingest endpoint, a stream, and its collectors."""

    tenant_ref: TenantRef
    suspend: Annotated[bool, _described("true: nothing of the pipeline is changed.")] = False
    labels: Annotated[
        list[LabelPath],
        Meta(max_length=16, description="Attribute paths whose values become labels."),
    ] = []
    retention: PipelineRetention = PipelineRetention()
    slo: Slo = Slo()
    ingest: Ingest = Ingest()
    collector: Collector = Collector()
    exposure: Exposure = Exposure()
    network_policy: PipelineNetworkPolicy = PipelineNetworkPolicy()
    monitoring: Monitoring = Monitoring()


class LogTenant(_Part, frozen=True, kw_only=True):
    """A tenant: `kubectl apply` one, and its place in PostgreSQL and Redis is made."""

    api_version: Literal["logweir.dev/v1alpha1"] = "logweir.dev/v1alpha1"
    kind: Literal["LogTenant"] = "LogTenant"
    metadata: Metadata
    spec: LogTenantSpec = LogTenantSpec()


class LogPipeline(_Part, frozen=True, kw_only=True):
    """A pipeline of a tenant."""

    api_version: Literal["logweir.dev/v1alpha1"] = "logweir.dev/v1alpha1"
    kind: Literal["LogPipeline"] = "LogPipeline"
    metadata: Metadata
    spec: LogPipelineSpec


Resource = LogTenant | LogPipeline
KINDS: Final[Mapping[str, type[LogTenant] | type[LogPipeline]]] = {
    "LogTenant": LogTenant,
    "LogPipeline": LogPipeline,
}


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


def _labels_are_free(spec: LogPipelineSpec) -> bool:
    reserved = ("logweir.dev/", "app.kubernetes.io/")
    pods = (spec.ingest.pod, spec.collector.pod)
    return not any(name.startswith(reserved) for pod in pods for name in pod.labels)


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
            "spec",
            "spec.ingest.pod.labels",
            "self.ingest.pod.labels.all(k,"
            " !k.startsWith('logweir.dev/') && !k.startsWith('app.kubernetes.io/'))"
            " && self.collector.pod.labels.all(k,"
            " !k.startsWith('logweir.dev/') && !k.startsWith('app.kubernetes.io/'))",
            "the prefixes logweir.dev/ and app.kubernetes.io/ are reserved",
            _labels_are_free,
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
