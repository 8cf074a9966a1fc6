"""What the operator writes into `.status` of both kinds; `status.py` fills it."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=0)]


class _Part(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Base of all parts; each field is there when it is known."""


class Condition(_Part, frozen=True):
    """One thing that is true of the resource or not, as metav1.Condition has it."""

    type: Annotated[str, Meta(max_length=316)]
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Meta(min_length=1, max_length=1024)]
    message: Annotated[str, Meta(max_length=32768)]
    last_transition_time: Annotated[dt.datetime, Meta(description="When status last changed.")]
    observed_generation: Annotated[Count, Meta(description="The generation it is true of.")] = 0


Conditions = Annotated[list[Condition], Meta(max_length=16)]
Text = Annotated[str, Meta(max_length=1024)]


class CredentialsStatus(_Part, frozen=True):
    """Where the rotation of the tenant's credentials stands."""

    phase: Text | None = None
    revision: Count | None = None
    root_version: Count | None = None
    last_rotation_time: dt.datetime | None = None
    next_rotation_time: dt.datetime | None = None
    overlap_until: dt.datetime | None = None
    problem: Annotated[str, Meta(max_length=4096)] | None = None


class StorageStatus(_Part, frozen=True):
    """What the tenant has stored, as its keeper measures it."""

    stored_bytes: Count | None = None
    oldest_record: dt.datetime | None = None
    next_drop: dt.datetime | None = None


class KeyStatus(_Part, frozen=True):
    """An API key of the resource, and the Secret that holds its text."""

    name: Text
    secret_name: Text | None = None


class LogTenantStatus(_Part, frozen=True):
    """What is so."""

    observed_generation: Count | None = None
    tenant_id: (
        Annotated[str, Meta(max_length=40, description="Names schema and journal.")] | None
    ) = None
    pipelines: Annotated[Count, Meta(description="LogPipelines that refer to it.")] | None = None
    last_handled_reconcile_at: Text | None = None
    last_handled_rotate_at: Text | None = None
    credentials: CredentialsStatus | None = None
    storage: StorageStatus | None = None
    api_keys: Annotated[list[KeyStatus], Meta(max_length=64)] | None = None
    conditions: Conditions | None = None


class IngestStatus(_Part, frozen=True):
    """Pods of ingest."""

    replicas: Count | None = None
    ready_replicas: Count | None = None
    ready: (
        Annotated[str, Meta(max_length=32, description="Ready of wanted pods, as 2/2.")] | None
    ) = None


class CollectorStatus(_Part, frozen=True):
    """Pods of the collectors, and the last change of their number."""

    replicas: Count | None = None
    ready_replicas: Count | None = None
    desired_replicas: Count | None = None
    selector: Text | None = None
    last_scale_time: dt.datetime | None = None
    last_scale_reason: Annotated[str, Meta(max_length=4096)] | None = None


class Lag(_Part, frozen=True):
    """What waits in the journal."""

    entries: Count | None = None
    backlog_bytes: Annotated[int, Meta(description="Bytes that are not stored yet.")] | None = None
    oldest_seconds: Annotated[Count, Meta(description="How long the oldest waits.")] | None = None
    arrival_bytes_per_second: Count | None = None
    drain_bytes_per_second: Count | None = None
    drain: Annotated[str, Meta(max_length=64, description="When it will be gone.")] | None = None
    sampled_at: dt.datetime | None = None


class LogPipelineStatus(_Part, frozen=True):
    """What is so."""

    observed_generation: Count | None = None
    pipeline_id: Count | None = None
    url: Text | None = None
    last_handled_reconcile_at: Text | None = None
    ingest: IngestStatus | None = None
    collector: CollectorStatus | None = None
    lag: Lag | None = None
    conditions: Conditions | None = None
