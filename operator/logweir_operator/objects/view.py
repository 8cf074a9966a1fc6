"""What objects are made from, and what all of them have in common: names, labels, owner. Pure."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from logweir.core.binding import Login
from logweir.core.names import PipelineId
from logweir_operator.config import Config
from logweir_operator.model import API_VERSION, LogPipeline, LogTenant

Object = dict[str, Any]
Component = Literal["ingest", "collector", "tenant"]

TENANT_LABEL: Final = "logweir.dev/tenant"
PIPELINE_LABEL: Final = "logweir.dev/pipeline"
MANAGED_BY: Final = {"app.kubernetes.io/managed-by": "logweir-operator"}

MAX_NAME: Final = 63
"""Of what becomes a label or a host name; more is allowed for some kinds, and trouble for all."""

HTTP_PORT: Final = 8080
OPS_PORT: Final = 9090


class TenantView(msgspec.Struct, frozen=True, kw_only=True):
    """A LogTenant with what its objects need.

    Attributes:
        resource: the LogTenant.
        uid: its own.
        tenant: its id; empty before one is claimed.
        key_texts: its API keys, by name.
        urls: where each key is good, by name of the key.
        config: of the operator.
    """

    resource: LogTenant
    uid: str
    tenant: str = ""
    key_texts: Mapping[str, str] = {}
    urls: Mapping[str, str] = {}
    config: Config


class PipelineView(msgspec.Struct, frozen=True, kw_only=True):
    """A LogPipeline with what its objects need.

    Attributes:
        resource: the LogPipeline.
        uid: its own.
        tenant_name: of its LogTenant.
        tenant: its tenant's id; empty before one is claimed.
        pipeline: its integer id; None before it has one.
        ingest_binding: of its ingest; empty before its place in the servers is made.
        collector_binding: likewise.
        cas: certificates of authorities, by the names of their files: postgres-ca.crt and
            redis-ca.crt, as far as there are any.
        config: of the operator.
        served_kinds: optional kinds that may be made.
        redis: HOST:PORT of the journal and the collectors' login, by which KEDA looks at it.
        redis_tls: whether that takes TLS.
        is_open: False while it or its tenant is deleted: nothing comes in, collectors go on.
    """

    resource: LogPipeline
    uid: str
    tenant_name: str
    tenant: str = ""
    pipeline: PipelineId | None = None
    ingest_binding: bytes = b""
    collector_binding: bytes = b""
    cas: Mapping[str, bytes] = {}
    config: Config
    served_kinds: frozenset[str] = frozenset()
    redis: tuple[str, Login] | None = None
    redis_tls: bool = False
    is_open: bool = True

    @property
    def name(self) -> str:
        """Of the LogPipeline."""
        return self.resource.metadata.name

    @property
    def namespace(self) -> str:
        """Of the LogPipeline and all that is its."""
        return self.resource.metadata.namespace

    def child(self, component: Component) -> str:
        """Return the name of most children of a component."""
        return f"{self.name}-{component}"

    def binding_secret(self, component: Component) -> str:
        """Return the name of the Secret with the component's binding."""
        return f"{self.child(component)}-binding"

    @property
    def scales_by_keda(self) -> bool:
        """Whether KEDA scales the collectors: it is asked for, and it can."""
        return (
            self.resource.spec.collector.autoscaling.driver == "KEDA"
            and {"ScaledObject", "TriggerAuthentication"} <= self.served_kinds
            and self.redis is not None
            and self.pipeline is not None
        )


View = TenantView | PipelineView


def short(name: str) -> str:
    """Return a name of at most 63 characters; of a longer one the end gives way to its hash."""
    if len(name) <= MAX_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: MAX_NAME - 9].rstrip('-')}-{digest}"


def selector(view: View, component: Component) -> dict[str, str]:
    """Return the labels that select a component's pods; they never change, as none may."""
    return {
        "app.kubernetes.io/name": "logweir",
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/instance": view.resource.metadata.name,
    }


def labels(view: View, component: Component) -> dict[str, str]:
    """Return the labels of an object."""
    name = view.resource.metadata.name
    own = (
        {TENANT_LABEL: name}
        if isinstance(view, TenantView)
        else {TENANT_LABEL: view.tenant_name, PIPELINE_LABEL: name}
    )
    return {
        **selector(view, component),
        "app.kubernetes.io/part-of": "logweir",
        **MANAGED_BY,
        **own,
    }


def document(
    api_version: str,
    kind: str,
    view: View,
    component: Component,
    name: str,
    *,
    annotations: Mapping[str, str] = {},
    more_labels: Mapping[str, str] = {},
    **rest: object,
) -> Object:
    """Return an object with all that every object has; `rest` are its own fields."""
    resource = view.resource
    metadata: Object = {
        "name": name,
        "namespace": resource.metadata.namespace,
        "labels": {**more_labels, **labels(view, component)},
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": resource.kind,
                "name": resource.metadata.name,
                "uid": view.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **rest}


def secret(
    view: View, component: Component, name: str, values: Mapping[str, bytes | str]
) -> Object:
    """Return a Secret. Always by `data`: of `stringData` a key that is left out would stay."""
    data = {
        key: base64.b64encode(value.encode() if isinstance(value, str) else value).decode()
        for key, value in values.items()
    }
    return document("v1", "Secret", view, component, name, type="Opaque", data=data)
