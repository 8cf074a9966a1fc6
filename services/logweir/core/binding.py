"""Binding files: what a role serves, and the credentials that are its own; JSON, mode 0600.

    operator / `up` --writes--> binding file --re-read on change--> role

A binding is a list of tenants: one of them in a pod of Kubernetes, all of the node in `up`.
A field that a newer operator adds is ignored by an older role.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from logweir.core import errors
from logweir.core.names import PipelineId, TenantId


class PostgresServer(msgspec.Struct, frozen=True):
    """Where a PostgreSQL is. `tls` is libpq's sslmode, `ca_file` the certificates to trust."""

    host: str
    port: int
    database: str
    tls: str = "prefer"
    ca_file: str = ""


class JournalServer(msgspec.Struct, frozen=True):
    """Where a Redis or Valkey is. `replicas` must acknowledge each append (WAIT)."""

    host: str
    port: int
    tls: bool = False
    ca_file: str = ""
    replicas: int = 0


class Login(msgspec.Struct, frozen=True):
    """A user of a server, with its password."""

    user: str
    password: str


class IngestPipeline(msgspec.Struct, frozen=True):
    """One pipeline as ingest needs it; `labels` are attribute paths that become labels."""

    id: PipelineId
    name: str
    retention_days: int
    labels: tuple[str, ...] = ()


class IngestTenant(msgspec.Struct, frozen=True):
    """One tenant's ingest. `secrets` maps a signing revision to `k_ingest` as hex."""

    tenant: TenantId
    journal: JournalServer
    login: Login
    secrets: dict[str, str]
    pipelines: tuple[IngestPipeline, ...]


class IngestBinding(msgspec.Struct, frozen=True):
    """The binding file of the ingest role."""

    tenants: tuple[IngestTenant, ...] = ()


class CollectorPipeline(msgspec.Struct, frozen=True):
    """One pipeline as collectors need it; `linger_s` is how long records wait for company."""

    id: PipelineId
    name: str
    retention_days: int
    linger_s: float = 0.5


class CollectorTenant(msgspec.Struct, frozen=True):
    """One tenant's collectors: its journal and its store, each with a login of its own."""

    tenant: TenantId
    journal: JournalServer
    journal_login: Login
    store: PostgresServer
    store_login: Login
    pipelines: tuple[CollectorPipeline, ...]


class CollectorBinding(msgspec.Struct, frozen=True):
    """The binding file of the collector role."""

    tenants: tuple[CollectorTenant, ...] = ()


class QueryBinding(msgspec.Struct, frozen=True):
    """The binding file of the query role: to derive readers' logins and check keys, the roots as
    hex, by version."""

    store: PostgresServer
    journal: JournalServer
    control_login: Login
    read_roots: dict[str, str]
    sign_roots: dict[str, str]


class KeeperBinding(msgspec.Struct, frozen=True):
    """The binding file of the keeper role: roots as hex, by version."""

    store: PostgresServer
    control_login: Login
    maintain_roots: dict[str, str]


class AuthBinding(msgspec.Struct, frozen=True):
    """The binding file of the auth role: it signs keys, and tells journals of those that end."""

    store: PostgresServer
    journal: JournalServer
    control_login: Login
    journal_login: Login
    sign_roots: dict[str, str]


def roots(texts: Mapping[str, str]) -> dict[int, bytes]:
    """Return the roots of a binding, by version.

    Raises:
        SetupError: a root is no hex, or its version no number.
    """
    try:
        return {int(version): bytes.fromhex(text) for version, text in texts.items()}
    except ValueError as cause:
        raise errors.SetupError("The binding has a root key that is no hex.") from cause
