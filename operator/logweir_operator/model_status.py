"""What the operator writes into `.status` of both kinds; `status.py` fills it.

The text below a field, or else its type's docstring, is what `kubectl explain` says of it.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=0)]
Generation = Annotated[int, Meta(ge=-1)]
Text = Annotated[str, Meta(max_length=1024)]


class _Part(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Base of all parts; each field is there when it is known."""


class Condition(_Part, frozen=True):
    """One thing that is true of the resource, or not."""

    type: Annotated[str, Meta(max_length=316)]
    """What it is about: Ready sums all of them up."""

    status: Literal["True", "False", "Unknown"]
    """Whether it is so."""

    reason: Annotated[str, Meta(min_length=1, max_length=1024)]
    """Why, as one word of a closed list."""

    message: Annotated[str, Meta(max_length=32768)]
    """Why, as a sentence for people."""

    last_transition_time: dt.datetime
    """When status changed last."""

    observed_generation: Count = 0
    """The metadata.generation that it is true of."""


Conditions = Annotated[list[Condition], Meta(max_length=16)]


class CredentialsStatus(_Part, frozen=True):
    """The tenant's credentials, and how far their rotation is."""

    phase: Text | None = None
    """steady: one set is good. spreading: new ones are brought to all processes. overlapping: old
    and new ones are good."""

    revision: Count | None = None
    """How often the passwords have changed."""

    root_version: Count | None = None
    """The version of the root keys that they are derived from."""

    last_rotation_time: dt.datetime | None = None
    """When they changed last."""

    next_rotation_time: dt.datetime | None = None
    """When they change next by themselves; absent without spec.credentials.rotation.enabled."""

    overlap_until: dt.datetime | None = None
    """When the old ones end; absent when there are none."""

    problem: Annotated[str, Meta(max_length=4096)] | None = None
    """Why a rotation does not go on; it is tried again."""


class StorageStatus(_Part, frozen=True):
    """What the tenant has stored, as it was measured last."""

    stored_bytes: Count | None = None
    """Stored (compressed) bytes of all pipelines."""

    oldest_record: dt.datetime | None = None
    """Timestamp of the oldest record."""

    next_drop: dt.datetime | None = None
    """When the next records will be too old."""


class KeyStatus(_Part, frozen=True):
    """An API key of spec.apiKeys."""

    name: Text
    """Name of the key."""

    secret_name: Text | None = None
    """Secret with its text."""


class LogTenantStatus(_Part, frozen=True):
    """What is so, as the operator saw it last."""

    observed_generation: Generation | None = None
    """The metadata.generation that this status is of; -1: the operator has not seen it yet."""

    tenant_id: Annotated[str, Meta(max_length=40)] | None = None
    """Names the schema in PostgreSQL, the keys in Redis and the address /t/ID/PIPELINE."""

    pipelines: Count | None = None
    """LogPipelines that refer to the tenant."""

    last_handled_reconcile_at: Text | None = None
    """Value of the annotation logweir.dev/reconcile-at that was answered last."""

    last_handled_rotate_at: Text | None = None
    """Value of the annotation logweir.dev/rotate-at that was answered last."""

    credentials: CredentialsStatus | None = None
    storage: StorageStatus | None = None

    api_keys: Annotated[list[KeyStatus], Meta(max_length=64)] | None = None
    """The API keys of spec.apiKeys that are good, and their Secrets."""

    conditions: Conditions | None = None
    """What is true of the tenant, and why."""


class IngestStatus(_Part, frozen=True):
    """The pods that take records in."""

    replicas: Count | None = None
    """Pods there are."""

    ready_replicas: Count | None = None
    """Pods that are ready."""

    ready: Annotated[str, Meta(max_length=32)] | None = None
    """Ready pods of those that are wanted, such as 2/2."""


class CollectorStatus(_Part, frozen=True):
    """The pods that store what waits in the journal, and the last change of their number."""

    replicas: Count | None = None
    """Pods there are."""

    ready_replicas: Count | None = None
    """Pods that are ready."""

    desired_replicas: Count | None = None
    """Pods that are wanted."""

    selector: Text | None = None
    """Labels of the pods, for what scales them."""

    last_scale_time: dt.datetime | None = None
    """When desiredReplicas changed last."""

    last_scale_reason: Annotated[str, Meta(max_length=4096)] | None = None
    """Why it changed."""


class Lag(_Part, frozen=True):
    """What waits in the journal until it is stored."""

    entries: Count | None = None
    """Entries of the stream: a request is one, or a few when it is large."""

    backlog_bytes: int | None = None
    """Bytes of these entries."""

    oldest_seconds: Count | None = None
    """Seconds that the oldest entry has waited; absent when nothing waits."""

    arrival_bytes_per_second: Count | None = None
    """Bytes a second that come in, over the last minute."""

    drain_bytes_per_second: Count | None = None
    """Bytes a second that are stored, over the last minute."""

    drain: Annotated[str, Meta(max_length=64)] | None = None
    """When nothing will wait any more: empty, keeping up, in 40 s, growing or unknown."""

    sampled_at: dt.datetime | None = None
    """When the journal was asked."""


class LogPipelineStatus(_Part, frozen=True):
    """What is so, as the operator saw it last."""

    observed_generation: Generation | None = None
    """The metadata.generation that this status is of; -1: the operator has not seen it yet."""

    pipeline_id: Count | None = None
    """Number of the pipeline in the journal and the store."""

    url: Text | None = None
    """Base address to send to: from outside when the pipeline is exposed, else of its Service."""

    last_handled_reconcile_at: Text | None = None
    """Value of the annotation logweir.dev/reconcile-at that was answered last."""

    ingest: IngestStatus | None = None
    collector: CollectorStatus | None = None
    lag: Lag | None = None

    conditions: Conditions | None = None
    """What is true of the pipeline, and why."""
