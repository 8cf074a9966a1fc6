"""Every metric of the platform, with what it counts and what to do when it moves.

Names end in their unit or in `_total`; a label has a bounded number of values.
"""

from __future__ import annotations

import contextlib
import functools

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from logweir.core import access, errors

disable_created_metrics()  # type: ignore[no-untyped-call]  # the package has no types for it

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

INGEST_REQUESTS = Counter(
    "logweir_ingest_requests_total",
    "Requests by status. Rising 429: the tenant is over its quota. 503: look at the journal.",
    ["tenant", "pipeline", "status"],
)
INGEST_RECORDS = Counter(
    "logweir_ingest_records_total",
    "Records by outcome: accepted, rejected (named in the answer), expired at arrival, repeated.",
    ["tenant", "pipeline", "outcome"],
)
INGEST_BYTES = Counter(
    "logweir_ingest_decoded_bytes_total",
    "Bytes of accepted requests after decompression.",
    ["tenant", "pipeline"],
)
INGEST_BODY_BYTES = Gauge(
    "logweir_ingest_bodies_held_bytes",
    "Bytes of request bodies in memory. Near its bound requests are answered 503.",
)
REFUSED_KEYS = Counter(
    "logweir_refused_keys_total",
    "Requests refused for their key, by reason: missing, mistyped, unsigned (forged, or of no"
    " tenant here), expired, revoked, elsewhere (of another tenant or pipeline), scope, leaving"
    " (the tenant is being deleted), stale (no news of revocations for too long)."
    " Many unsigned ones: somebody guesses.",
    ["reason"],
)
REVOCATIONS_AGE_SECONDS = Gauge(
    "logweir_revocations_age_seconds",
    "Time since a role heard news of which keys are revoked; of several tenants, the longest. A"
    " minute is usual, over 900 seconds no key is trusted.",
    ["role"],
)
AUTH_REQUESTS = Counter(
    "logweir_auth_requests_total",
    "Requests of the auth role by endpoint and status.",
    ["endpoint", "status"],
)
AUTH_UNTOLD_TENANTS = Gauge(
    "logweir_auth_untold_tenants",
    "Tenants whose journal could not be told of revoked keys. Not 0 for long: look at the journal.",
)
JOURNAL_APPEND_SECONDS = Histogram(
    "logweir_journal_append_seconds",
    "Time of one append. When it rises, look at the journal's disk (fsync) first.",
    buckets=_SECONDS,
)
COLLECTOR_RECORDS = Counter(
    "logweir_collector_records_total",
    "Records by outcome in a committed transaction: stored, quarantined, expired, repeated.",
    ["tenant", "pipeline", "outcome"],
)
COLLECTOR_BLOCKS = Counter(
    "logweir_collector_blocks_total",
    "Blocks by outcome: stored, repeated (delivered again), poisoned, unknown_version.",
    ["tenant", "pipeline", "outcome"],
)
COLLECTOR_COMMIT_SECONDS = Histogram(
    "logweir_collector_commit_seconds",
    "Time of one transaction with its segments.",
    buckets=_SECONDS,
)
COLLECTOR_QUERYABLE_SECONDS = Histogram(
    "logweir_collector_queryable_seconds",
    "Age of a block at its commit. Over the goal of the pipeline: more collectors, or the store.",
    ["tenant", "pipeline"],
    buckets=(0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0),
)
COLLECTOR_BREAKER_OPEN = Gauge(
    "logweir_collector_breaker_open",
    "1 while a pipeline's collector stands still because too many of its blocks are damaged.",
    ["tenant", "pipeline"],
)
JOURNAL_BACKLOG_ENTRIES = Gauge(
    "logweir_journal_backlog_entries",
    "Entries that are not committed yet.",
    ["tenant", "pipeline"],
)
QUERY_REQUESTS = Counter(
    "logweir_query_requests_total",
    "Queries by endpoint and status.",
    ["endpoint", "status"],
)
QUERY_SECONDS = Histogram(
    "logweir_query_seconds",
    "Time of a query. Read it with the bytes that were scanned.",
    ["endpoint"],
    buckets=_SECONDS,
)
QUERY_SCANNED_BYTES = Counter(
    "logweir_query_scanned_bytes_total",
    "Bytes of columns that queries decompressed.",
)
TAIL_CLIENTS = Gauge("logweir_tail_clients", "Live tails that are open now.")
TAIL_GAP_RECORDS = Counter(
    "logweir_tail_gap_records_total",
    "Records that a tail was told it missed, because its client reads too slowly.",
)
KEEPER_RUNS = Counter(
    "logweir_keeper_runs_total",
    "Duties by kind and outcome: done, ended (before it was finished, goes on later), failed."
    " Failures are in the keeper's log with their reason.",
    ["duty", "outcome"],
)
KEEPER_MERGED_SEGMENTS = Counter(
    "logweir_keeper_merged_segments_total",
    "Small segments that were merged into larger ones.",
)
KEEPER_LEFT_SEGMENTS = Counter(
    "logweir_keeper_left_segments_total",
    "Segments left as they are: damaged (look at the keeper's log, then at the disk), or of an"
    " unknown_version (a newer program wrote them; upgrade the keeper).",
    ["reason"],
)
KEEPER_PRUNED_ROWS = Counter(
    "logweir_keeper_pruned_rows_total",
    "Rows of ledgers that were deleted because nothing needs them any more.",
    ["table"],
)
KEEPER_DROPPED_PARTITIONS = Counter(
    "logweir_keeper_dropped_partitions_total",
    "Partitions that were dropped because all in them had expired.",
)
KEEPER_EXPIRED_SEGMENTS = Counter(
    "logweir_keeper_expired_segments_total",
    "Segments that were deleted because of their age, or because the tenant keeps fewer bytes.",
)
KEEPER_CORRECTED_BYTES = Counter(
    "logweir_keeper_corrected_usage_bytes_total",
    "Bytes by which usage did not add up with the segments. It moves after an upgrade from a"
    " program that did not follow merges; later, somebody changes segments by hand.",
)
TENANT_STORED_BYTES = Gauge(
    "logweir_tenant_stored_bytes",
    "Bytes of a tenant's segments; over quotas.storedBytes ingest answers 429.",
    ["tenant"],
)
TENANT_OLDEST_RECORD = Gauge(
    "logweir_tenant_oldest_record_timestamp_seconds",
    "Time of the oldest record that is stored; 0: there is none.",
    ["tenant"],
)
TENANT_NEXT_DROP = Gauge(
    "logweir_tenant_next_drop_timestamp_seconds",
    "When the next records go because of their age; 0: there are none. Long ago: a query that"
    " runs for very long holds it up, or no keeper runs.",
    ["tenant"],
)
KEEPER_FAILING_TENANTS = Gauge(
    "logweir_keeper_failing_tenants",
    "Tenants whose last visit by this keeper failed; the reason is in its log.",
)
OPERATOR_RECONCILES = Counter(
    "logweir_operator_reconciles_total",
    "Passes over a LogTenant or LogPipeline by result: done, failed (tried again later), stalled"
    " (waits for a person; the object's conditions say why).",
    ["kind", "result"],
)
OPERATOR_RECONCILE_SECONDS = Histogram(
    "logweir_operator_reconcile_seconds",
    "Time of one pass over one object.",
    ["kind"],
    buckets=_SECONDS,
)
OPERATOR_TURN_SECONDS = Histogram(
    "logweir_operator_turn_seconds",
    "Time of one pass over what all tenants have in PostgreSQL and Redis.",
    buckets=_SECONDS,
)
OPERATOR_QUEUE_DEPTH = Gauge(
    "logweir_operator_queue_depth", "Objects that wait for a pass, or are in one."
)
OPERATOR_QUEUE_OLDEST_SECONDS = Gauge(
    "logweir_operator_queue_oldest_seconds",
    "How long the oldest of them waits. Minutes: the API server is slow or refuses.",
)
OPERATOR_APPLIES = Counter(
    "logweir_operator_applies_total",
    "Writes to the API server by kind of object, verb (apply, delete, scale, status) and result.",
    ["kind", "verb", "result"],
)
OPERATOR_DRIFT = Counter(
    "logweir_operator_drift_total",
    "Children that somebody else had changed, and that were put right.",
    ["kind"],
)
OPERATOR_EVENTS = Counter(
    "logweir_operator_watch_events_total", "Events of the API server by kind of object.", ["kind"]
)
OPERATOR_LEADER = Gauge(
    "logweir_operator_leader", "1 while this operator holds the Lease, so that it may write."
)
OPERATOR_OLDEST_SECONDS = Gauge(
    "logweir_operator_journal_oldest_seconds",
    "How long the oldest record of a pipeline waits to be stored; 0: nothing waits. Told also while"
    " no collector runs. Rising: look at the collectors, then at PostgreSQL.",
    ["tenant", "pipeline"],
)
OPERATOR_AT_MAXIMUM = Gauge(
    "logweir_operator_collectors_at_maximum",
    "1 while a pipeline needs more collectors than it may have: raise maxReplicas, or the tenant's"
    " connectionLimit.",
    ["tenant", "pipeline"],
)
_PIPELINE = ["namespace", "pipeline"]
SCALING_BACKLOG_BYTES = Gauge(
    "logweir_operator_backlog_bytes",
    "Bytes of a pipeline's journal that are not stored yet. Rising for long: look at the desired"
    " replicas, then at the store.",
    _PIPELINE,
)
SCALING_ARRIVAL = Gauge(
    "logweir_operator_arrival_bytes_per_second",
    "Bytes that come into a pipeline's journal, smoothed over a minute.",
    _PIPELINE,
)
SCALING_DRAIN = Gauge(
    "logweir_operator_drain_bytes_per_second",
    "Bytes of a pipeline's journal that collectors store, smoothed over a minute.",
    _PIPELINE,
)
SCALING_DESIRED = Gauge(
    "logweir_operator_desired_replicas", "Collectors that a pipeline should have.", _PIPELINE
)
SCALING_DECISIONS = Counter(
    "logweir_operator_scale_decisions_total",
    "Looks at a pipeline by what was decided with: Sampling, ScaledToZero, AtMaximum (more would"
    " be needed than may be), MetricsUnavailable (look at the journal), ManagedByKeda, Manual.",
    ["reason"],
)


def text() -> bytes:
    """Return all metrics in Prometheus' text format."""
    return generate_latest()


def refused(error: errors.LogweirError) -> None:
    """Count a request whose key is refused; other errors of a request are not counted."""
    if isinstance(error, errors.UnauthorizedError | errors.ForbiddenError) and error.reason:
        REFUSED_KEYS.labels(error.reason).inc()
    elif isinstance(error, access.StaleNewsError):
        REFUSED_KEYS.labels("stale").inc()


def scaled(
    namespace: str,
    pipeline: str,
    *,
    backlog_bytes: int | None,
    arrival: float | None,
    drain: float | None,
    desired: int,
    reason: str,
) -> None:
    """Show what was seen of a pipeline and decided; what is not known stays as it was.

    Args:
        namespace: of the LogPipeline.
        pipeline: its name.
        backlog_bytes: of its journal; None: there was no sample.
        arrival: bytes a second that come in.
        drain: bytes a second that are stored.
        desired: how many collectors it should have.
        reason: of the decision.
    """
    if backlog_bytes is not None:
        SCALING_BACKLOG_BYTES.labels(namespace, pipeline).set(backlog_bytes)
    if arrival is not None:
        SCALING_ARRIVAL.labels(namespace, pipeline).set(arrival)
    if drain is not None:
        SCALING_DRAIN.labels(namespace, pipeline).set(drain)
    SCALING_DESIRED.labels(namespace, pipeline).set(desired)
    SCALING_DECISIONS.labels(reason).inc()


def forget_scaled(namespace: str, pipeline: str) -> None:
    """Show nothing more of a pipeline."""
    for gauge in (
        SCALING_BACKLOG_BYTES,
        SCALING_ARRIVAL,
        SCALING_DRAIN,
        SCALING_DESIRED,
    ):
        with contextlib.suppress(KeyError):  # of one that was never seen
            gauge.remove(namespace, pipeline)


@functools.lru_cache(maxsize=4096)
def counter(metric: Counter, *labels: object) -> Counter:
    """Return a metric's counter of these labels: to look it up in the metric costs more than to
    count."""
    return metric.labels(*labels)
