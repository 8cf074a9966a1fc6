"""LogTenant and LogPipeline, `logweir.dev/v1alpha1`: one model for operator, `up`, CLI and docs.

camelCase on the wire, snake_case here; bytes and seconds as units. Bounds of single fields stand in
their types, rules over several fields in `rules.py`. The text below a field, or else its type's
docstring, is what `kubectl explain` and the reference say of it (`crdgen.py`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

GROUP: Final = "logweir.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

# In Python `$` also matches before a last line break; a CRD has `$` where these have `\\Z`.
_LABEL: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NAME: Final = f"^{_LABEL}\\Z"
_TENANT_ID: Final = "^[a-z][a-z0-9-]{1,30}[a-z0-9]\\Z"
_HOST: Final = f"^((\\*\\.)?{_LABEL}(\\.{_LABEL})*)?\\Z"
_QUANTITY: Final = "^[0-9]+(\\.[0-9]+)?(m|Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?\\Z"

Name = Annotated[str, Meta(min_length=1, max_length=40, pattern=_NAME)]
Text63 = Annotated[str, Meta(max_length=63)]
Text253 = Annotated[str, Meta(max_length=253)]
Days = Annotated[int, Meta(ge=1, le=3650)]
Positive = Annotated[int, Meta(ge=1, le=1 << 53)]
Replicas = Annotated[int, Meta(ge=0, le=1000)]
UpToThousand = Annotated[int, Meta(ge=1, le=1000)]
Quantity = Annotated[int, Meta(ge=0)] | Annotated[str, Meta(max_length=32, pattern=_QUANTITY)]
CountOrPercent = (
    Annotated[int, Meta(ge=0)] | Annotated[str, Meta(max_length=4, pattern="^(100|[0-9]{1,2})%\\Z")]
)
AnnotationMap = Annotated[dict[str, Annotated[str, Meta(max_length=4096)]], Meta(max_length=32)]
LabelMap = Annotated[dict[str, Text63], Meta(max_length=32)]
LabelPath = Annotated[str, Meta(min_length=1, max_length=128, pattern="^[A-Za-z0-9_./-]+\\Z")]


UNIQUE: Final[Mapping[str, str]] = {
    "apiKeys": "name",
    "imagePullSecrets": "name",
    "conditions": "type",
    "ingressNamespaces": "",
    "labels": "",
    "scopes": "",
}
"""Lists without repeats: of objects, and the field that tells them apart; or of texts."""


class _Part(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Base of all parts of a resource: an unknown field is refused, not ignored."""


class Metadata(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The part of Kubernetes' metadata that matters here; the rest is read over."""

    name: Name
    namespace: Annotated[str, Meta(max_length=63, pattern=_NAME)] = "default"
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


# ---- LogTenant -----------------------------------------------------------------------------------


class TenantPostgres(_Part, frozen=True):
    """Where the tenant's schema is, and how much of the server it may use."""

    profile: Text63 = "default"
    """Name of a PostgreSQL installation of the operator's configuration; there is only 'default' so
    far, another is Stalled with InvalidSpec. Immutable: data is not moved."""

    connection_limit: Annotated[int, Meta(ge=2, le=500)] = 40
    """Connections that each of the tenant's logins may have at a time; whoever needs one more
    waits. It bounds collectors, too: each takes one, and a tenth is left to those that are
    replaced."""


class TenantRedis(_Part, frozen=True):
    """Where the tenant's journal is."""

    profile: Text63 = "default"
    """Name of a Redis installation of the operator's configuration; there is only 'default' so far,
    another is Stalled with InvalidSpec. Immutable: data is not moved."""


class Retention(_Part, frozen=True):
    """How long records are kept: what is too old or too much goes, whichever comes first."""

    days: Days = 30
    """Days that records are kept, counted from their timestamps. Older ones are not found any more,
    at once, and their bytes go soon after."""

    bytes: Positive | None = None
    """Stored (compressed) bytes of all pipelines together; over it the oldest records are deleted.
    Left out: only their age counts."""


class NamespaceQuota(_Part, frozen=True):
    """A ResourceQuota that is kept in the tenant's namespace. Left out: there is none. It is made
    when the chart's features.namespaceQuota allows the operator to."""

    hard: Annotated[dict[str, Quantity], Meta(min_length=1, max_length=32)]
    """What all objects of the namespace may use together, in the words of a ResourceQuota, such as
    {requests.cpu: 2, pods: 20}."""


class Quotas(_Part, frozen=True):
    """What the tenant may use. A quota that is left out is unlimited, but for bufferBytes and the
    two of queries; over one of ingest, senders get 429 and Retry-After."""

    records_per_second: Positive | None = None
    """Records a second over all pipelines. A request that exceeds it is taken and becomes a debt;
    until that is paid, ingest answers 429. Left out: unlimited."""

    bytes_per_second: Positive | None = None
    """Decoded bytes a second over all pipelines. A request that exceeds it is taken and becomes a
    debt; until that is paid, ingest answers 429. Left out: unlimited."""

    buffer_bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 50)] = 1 << 30
    """Bytes that may wait in the journal (Redis) until they are stored; over it ingest answers 429.
    The default is 1 GiB. It counts as half of Redis' maxmemory where that is less."""

    stored_bytes: Positive | None = None
    """Stored (compressed) bytes from which on ingest answers 429. With a lower retention.bytes the
    oldest records make room instead. Left out: unlimited."""

    query_concurrency: UpToThousand | None = None
    """Queries that run at a time; over it query answers 429. postgres.connectionLimit should be
    greater by three. Left out: 8."""

    query_scan_bytes: Positive | None = None
    """Bytes that one query may read; there it ends with what it has found, `stopped: "bytes"` and a
    cursor. Left out: 4 GiB."""

    max_pipelines: Replicas | None = None
    """LogPipelines of the tenant that are served: the oldest. Others are Stalled with
    QuotaExceeded. Left out: unlimited."""

    namespace_quota: NamespaceQuota | None = None


class TenantKey(_Part, frozen=True):
    """An API key of the tenant. Its text is in the Secret TENANT-key-NAME, as `key`; that of a key
    for one pipeline has the pipeline's address beside it, as `url`."""

    name: Name
    """Names the key and its Secret."""

    scopes: Annotated[list[Literal["ingest", "query", "admin"]], Meta(min_length=1, max_length=2)]
    """What the key may do: [ingest], or one or both of [query, admin]. Who may send cannot read,
    and the other way round."""

    pipeline: Name | None = None
    """The one LogPipeline that the key is good for. Left out: all of the tenant."""

    enabled: bool = True
    """false revokes the key; every process refuses it within 5 seconds."""

    expires_at: Annotated[dt.datetime, Meta(tz=True)] | None = None
    """When the key ends (RFC 3339, with a time zone). Left out: never."""

    generation: Annotated[int, Meta(ge=1, le=1 << 31)] = 1
    """Add 1 to roll the key: its Secret gets a new text, and the old one is revoked at once."""


class Rotation(_Part, frozen=True):
    """How the tenant's passwords in PostgreSQL and Redis are changed by themselves. Old and new
    ones overlap, so that nothing fails meanwhile."""

    enabled: bool = False
    """true: they change every intervalSeconds. With false they change only when the annotation
    logweir.dev/rotate-at asks for it."""

    interval_seconds: Annotated[int, Meta(ge=3600, le=10 * 365 * 86400)] = 90 * 86400
    """Seconds between two changes. The default is 90 days."""

    overlap_seconds: Annotated[int, Meta(ge=60, le=30 * 86400)] = 86400
    """Seconds that the old passwords are good beside the new ones; less than intervalSeconds. The
    default is a day."""


class Credentials(_Part, frozen=True):
    """The tenant's passwords in PostgreSQL and Redis."""

    rotation: Rotation = Rotation()


class TenantNetworkPolicy(_Part, frozen=True):
    """The NetworkPolicy that closes the tenant's pods for all that no other policy allows."""

    enabled: bool = True
    """false: it is not made."""


class LogTenantSpec(_Part, frozen=True):
    """Who owns logs: a schema, logins, keys, quotas and a retention of its own."""

    display_name: Annotated[str, Meta(max_length=128)] = ""
    """The tenant's name as people know it."""

    tenant_id: Annotated[str, Meta(min_length=3, max_length=32, pattern=_TENANT_ID)] | None = None
    """Names the schema in PostgreSQL, the keys in Redis and the address /t/ID/PIPELINE; 3 to 32
    characters, one LogTenant's alone in the installation. Left out: one is generated, see
    status.tenantId. Immutable, also whether it is given."""

    suspend: bool = False
    """true: nothing of the tenant and its pipelines is changed, neither in Kubernetes nor in
    PostgreSQL and Redis. What runs goes on."""

    read_only: bool = False
    """true: ingest answers 403; queries go on."""

    deletion_policy: Literal["Retain", "Delete"] = "Retain"
    """What becomes of the logs when the LogTenant is deleted. Retain: they are kept, and a
    LogTenant of the same namespace and name finds them again. Delete: they are dropped, and the id
    is never used again."""

    deletion_protection: bool = False
    """true: the LogTenant cannot be deleted; to do so set false first. In Kubernetes a policy of
    the chart sees to it (admissionPolicy.enabled). A namespace that is deleted waits for it, but
    loses its pods."""

    postgres: TenantPostgres = TenantPostgres()
    redis: TenantRedis = TenantRedis()
    retention: Retention = Retention()
    quotas: Quotas = Quotas()

    api_keys: Annotated[list[TenantKey], Meta(max_length=32)] = []
    """API keys of the tenant, each with a Secret of its own. A key that is taken off the list is
    revoked."""

    credentials: Credentials = Credentials()
    network_policy: TenantNetworkPolicy = TenantNetworkPolicy()


# ---- LogPipeline ---------------------------------------------------------------------------------


class TenantRef(_Part, frozen=True):
    """The LogTenant that the pipeline belongs to. Immutable."""

    name: Name
    """Name of a LogTenant of the same namespace; until there is one, the pipeline waits with
    TenantNotFound."""


class Slo(_Part, frozen=True):
    """What the pipeline promises to its readers."""

    queryable_within_seconds: Annotated[float, Meta(gt=0, le=3600)] = 2.0
    """Seconds from a record's acceptance until it can be found: a goal. While it is missed,
    condition Fresh is False and collectors are added."""


class PipelineRetention(_Part, frozen=True):
    """A retention shorter than the tenant's."""

    days: Days | None = None
    """Days that records of this pipeline are kept. Left out: as many as the tenant's."""


class Resources(_Part, frozen=True):
    """What a container asks for and may use at most. With neither, the operator's defaults; with
    one of them, what stands here and nothing else."""

    requests: Annotated[dict[str, Quantity], Meta(max_length=8)] = {}
    """What the scheduler keeps free for it, such as {cpu: 100m, memory: 128Mi}."""

    limits: Annotated[dict[str, Quantity], Meta(max_length=8)] = {}
    """What it may use at most, such as {memory: 512Mi}; over its memory it is killed."""


class DisruptionBudget(_Part, frozen=True):
    """How many pods a drain of nodes may take away; exactly one of the two. Left out: one at a
    time, and no budget for a single pod."""

    min_available: CountOrPercent | None = None
    """Pods that must stay: a number, or a percentage such as '50%'."""

    max_unavailable: CountOrPercent | None = None
    """Pods that may be missing: a number, or a percentage such as '50%'."""


class PullSecret(_Part, frozen=True):
    """A Secret to pull images with."""

    name: Text253
    """Name of a Secret of the namespace, of type kubernetes.io/dockerconfigjson."""


class Pod(_Part, frozen=True):
    """The safe part of a pod's template: no volumes, no security context, no host fields."""

    labels: LabelMap = {}
    """Labels of the pods; the prefixes logweir.dev/ and app.kubernetes.io/ are reserved."""

    annotations: AnnotationMap = {}
    """Annotations of the pods; those that turn AppArmor off are left out."""

    node_selector: Annotated[dict[str, Text63], Meta(max_length=16)] = {}
    """Labels that a node must have to run the pods."""

    priority_class_name: Text253 = ""
    """PriorityClass of the pods. Empty: the cluster's default."""

    image_pull_secrets: Annotated[list[PullSecret], Meta(max_length=8)] = []
    """Secrets to pull the image with, beside the operator's."""

    tolerations: Annotated[list[dict[str, Any]], Meta(max_length=16)] = []
    """Taints of nodes that the pods bear, as in a pod's spec."""

    affinity: dict[str, Any] = {}
    """Affinity to nodes and other pods, as in a pod's spec."""

    topology_spread_constraints: Annotated[list[dict[str, Any]], Meta(max_length=8)] = []
    """As in a pod's spec; one without a labelSelector selects these pods. Empty: they are spread
    over nodes and zones as far as that goes."""


class Ingest(_Part, frozen=True):
    """The pods that take records in."""

    replicas: Annotated[int, Meta(ge=1, le=100)] = 2
    """Pods. From 2 on, one of them may go without a request refused."""

    resources: Resources = Resources()
    disruption_budget: DisruptionBudget | None = None
    pod: Pod = Pod()


class ScaleUp(_Part, frozen=True):
    """How fast collectors are added: the greater of the two steps counts."""

    stabilization_window_seconds: Annotated[int, Meta(ge=0, le=3600)] = 0
    """Collectors are added only as far as so many seconds have all asked for. 0: at once."""

    max_percent_per_minute: Annotated[int, Meta(ge=1, le=10000)] = 300
    """Collectors that may be added in a minute, in percent of those that there were."""

    max_pods_per_minute: Annotated[int, Meta(ge=1, le=1000)] = 8
    """Collectors that may be added in a minute, however few there were."""


class ScaleDown(_Part, frozen=True):
    """How fast collectors are taken away."""

    stabilization_window_seconds: Annotated[int, Meta(ge=0, le=3600)] = 300
    """Collectors are taken away only as far as so many seconds have all allowed. 0: at once."""

    max_percent_per_minute: Annotated[int, Meta(ge=1, le=100)] = 50
    """Collectors that may be taken away in a minute, in percent of those that there were."""


class Autoscaling(_Part, frozen=True):
    """How many collectors run, by what waits in the journal."""

    driver: Literal["Internal", "KEDA", "None"] = "Internal"
    """Who decides. Internal: the operator. KEDA: a ScaledObject of the pipeline, by the number of
    entries that wait. None: collector.replicas, which `kubectl scale` writes."""

    min_replicas: Replicas = 1
    """Collectors that always run. 0: none while nothing waits; one record starts one."""

    max_replicas: Annotated[int, Meta(ge=1, le=1000)] = 10
    """Collectors at most. When more are needed, condition ScalingActive says AtMaximum. The
    tenant's postgres.connectionLimit may allow fewer."""

    target_backlog_bytes: Annotated[int, Meta(ge=1 << 16, le=1 << 40)] = 16 << 20
    """Bytes that may wait in the journal for each collector. The default is 16 MiB. KEDA is told
    the same as entries of 64 KiB."""

    target_drain_seconds: Annotated[int, Meta(ge=5, le=86400)] = 120
    """Seconds in which what waits should be stored, beside what arrives meanwhile; driver Internal
    only."""

    tolerance_percent: Annotated[int, Meta(ge=0, le=50)] = 10
    """A need that differs from the collectors there are by no more than this changes nothing;
    driver Internal only."""

    idle_cooldown_seconds: Annotated[int, Meta(ge=0, le=86400)] = 300
    """Seconds without anything to do until the last collector goes; only with minReplicas 0, where
    it is at least 30."""

    fallback_replicas: Replicas | None = None
    """Collectors at least, once the journal could not be asked for three minutes. Left out: as many
    as there are."""

    scale_up: ScaleUp = ScaleUp()
    scale_down: ScaleDown = ScaleDown()


class Collector(_Part, frozen=True):
    """The pods that store what waits in the journal."""

    replicas: Replicas | None = None
    """Collectors with autoscaling.driver None, and with no other; `kubectl scale` writes it."""

    resources: Resources = Resources()
    pod: Pod = Pod()
    autoscaling: Autoscaling = Autoscaling()


class ParentRef(_Part, frozen=True):
    """A Gateway that routes to the pipeline."""

    name: Text253
    """Name of the Gateway."""

    namespace: Text63 = ""
    """Namespace of the Gateway. Empty: the pipeline's."""

    section_name: Text253 = ""
    """Listener of the Gateway; one whose name begins with https makes the pipeline's url https.
    Empty: all listeners."""


class Exposure(_Part, frozen=True):
    """How the pipeline is reached from outside of the cluster, below /t/TENANT-ID/PIPELINE."""

    type: Literal["None", "Ingress", "HTTPRoute"] = "None"
    """None: by the Service PIPELINE-ingest alone. HTTPRoute needs the Gateway API in the cluster,
    and the chart's features.httpRoutes."""

    host: Annotated[str, Meta(max_length=253, pattern=_HOST)] = ""
    """Host name of the Ingress or HTTPRoute, which needs one; it may begin with '*.'."""

    ingress_class_name: Text253 = ""
    """IngressClass of the Ingress. Empty: the cluster's default."""

    annotations: AnnotationMap = {}
    """Annotations of the Ingress or HTTPRoute, for its controller."""

    tls_secret_name: Text253 = ""
    """Secret with the Ingress' certificate. Empty: the Ingress has no TLS of its own."""

    parent_refs: Annotated[list[ParentRef], Meta(max_length=4)] = []
    """Gateways of the HTTPRoute, which needs at least one."""


class PipelineNetworkPolicy(_Part, frozen=True):
    """Who may connect to the pipeline's pods, and whom they may connect to."""

    enabled: bool = True
    """false: the pipeline has no NetworkPolicies."""

    ingress_namespaces: Annotated[list[Text63], Meta(max_length=16)] = []
    """Namespaces whose pods may send to ingest, beside the pipeline's own, the platform's and that
    of the ingress controller."""


class Monitoring(_Part, frozen=True):
    """ServiceMonitor and PrometheusRule of the pipeline."""

    mode: Literal["Auto", "Enabled", "Disabled"] = "Auto"
    """Auto and Enabled: they are made when the cluster has their kinds and the chart's
    features.monitoring is on. Disabled: never."""

    lag_alert_seconds: Annotated[int, Meta(ge=10, le=86400)] = 600
    """Seconds that a record may wait in the journal; over it the alert LogweirPipelineBehind
    fires."""


class LogPipelineSpec(_Part, frozen=True):
    """One way in: an address to send to, a stream of the journal, and collectors that store it."""

    tenant_ref: TenantRef

    suspend: bool = False
    """true: nothing of the pipeline is changed, neither in Kubernetes nor in PostgreSQL and Redis.
    What runs goes on."""

    labels: Annotated[list[LabelPath], Meta(max_length=16)] = []
    """Paths of attributes, such as http.status, whose values become labels, beside those that
    senders give. Choose attributes with few values."""

    retention: PipelineRetention = PipelineRetention()
    slo: Slo = Slo()
    ingest: Ingest = Ingest()
    collector: Collector = Collector()
    exposure: Exposure = Exposure()
    network_policy: PipelineNetworkPolicy = PipelineNetworkPolicy()
    monitoring: Monitoring = Monitoring()


# ---- resources -----------------------------------------------------------------------------------


class LogTenant(_Part, frozen=True, kw_only=True):
    """A tenant: `kubectl apply` one, and its place in PostgreSQL and Redis is made."""

    api_version: Literal["logweir.dev/v1alpha1"] = "logweir.dev/v1alpha1"
    kind: Literal["LogTenant"] = "LogTenant"
    metadata: Metadata
    spec: LogTenantSpec = LogTenantSpec()


class LogPipeline(_Part, frozen=True, kw_only=True):
    """A pipeline: `kubectl apply` one, and records can be sent to its `status.url`."""

    api_version: Literal["logweir.dev/v1alpha1"] = "logweir.dev/v1alpha1"
    kind: Literal["LogPipeline"] = "LogPipeline"
    metadata: Metadata
    spec: LogPipelineSpec


Resource = LogTenant | LogPipeline
KINDS: Final[Mapping[str, type[LogTenant] | type[LogPipeline]]] = {
    "LogTenant": LogTenant,
    "LogPipeline": LogPipeline,
}
