"""The names that a tenant and a pipeline have in PostgreSQL and Redis; nothing else makes them.

tenant id "acme-co" -> schema t_acme_co, logins t_acme_co_w_a ..., Redis users t_acme-co.in ...
pipeline 7          -> {s03}:t_acme-co:7:q and its neighbours, all in the slot of one hash tag
"""

from __future__ import annotations

import re
import zlib
from typing import Literal, NewType

from logweir.core import errors

TenantId = NewType("TenantId", str)
PipelineId = NewType("PipelineId", int)

LoginKind = Literal["w", "r", "k"]
Slot = Literal["a", "b"]

PLATFORM = TenantId("platform")
"""Stands for the tenant in secrets of the platform itself (`core.keys`)."""

CONTROL_SCHEMA = "logweir"
CONSUMER_GROUP = "collectors"
SHARDS = 16
"""Hash tags over which tenants spread in a Redis Cluster; changing it strands all journals."""

_TENANT_ID = re.compile(r"[a-z][a-z0-9-]{1,30}[a-z0-9]")


def tenant_id(text: str) -> TenantId:
    """Return `text` as a tenant id.

    Raises:
        BadRequestError: it is not of the form `^[a-z][a-z0-9-]{1,30}[a-z0-9]$`, or reserved.
    """
    if text == PLATFORM:
        raise errors.BadRequestError(f"No tenant may be called {text!r}.")
    if not _TENANT_ID.fullmatch(text):
        raise errors.BadRequestError(
            f"{text[:64]!r} is not a tenant id.",
            hint="3 to 32 of a-z, 0-9 and '-', a letter first, no '-' at the end.",
        )
    return TenantId(text)


def schema(tenant: TenantId) -> str:
    """The tenant's Postgres schema; no id has a '_', so two tenants never share one."""
    return "t_" + tenant.replace("-", "_")


def tombstone(tenant: TenantId) -> str:
    """What the schema is called while it is dropped: no login and no search path names it."""
    return "dropped_" + schema(tenant)


def owner(tenant: TenantId) -> str:
    """The role that owns the schema and cannot log in."""
    return schema(tenant) + "_owner"


def login(tenant: TenantId, kind: LoginKind, slot: Slot) -> str:
    """A Postgres login: writer, reader or keeper, in one of the two slots of its rotation."""
    return f"{schema(tenant)}_{kind}_{slot}"


def journal_tenant(tenant: TenantId) -> str:
    """Prefix of the tenant's Redis keys, with the hash tag that keeps them in one slot."""
    return f"{{s{zlib.crc32(tenant.encode()) % SHARDS:02d}}}:t_{tenant}:"


def journal_pipeline(tenant: TenantId, pipeline: PipelineId) -> str:
    """Prefix of one pipeline's Redis keys; the stream is this + `q`."""
    return f"{journal_tenant(tenant)}{pipeline}:"


def redis_user(tenant: TenantId, kind: Literal["in", "col", "tail"]) -> str:
    """The Redis ACL user of the tenant's ingest, collectors or tails."""
    return f"t_{tenant}.{kind}"
