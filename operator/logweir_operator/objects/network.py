"""NetworkPolicies: what tenants' pods may reach, and who may reach them. Pure.

Policies add up: the tenant's denies all, each pipeline's opens what its pods need. A pipeline whose
own policies are off stays denied until the tenant's is off too, or somebody else's opens it.
"""

from __future__ import annotations

from collections.abc import Iterable

from logweir_operator.objects.view import (
    HTTP_PORT,
    MANAGED_BY,
    OPS_PORT,
    TENANT_LABEL,
    Component,
    Object,
    PipelineView,
    TenantView,
    document,
    selector,
)

_API = "networking.k8s.io/v1"


def default_deny(view: TenantView) -> Object:
    """Return the policy that denies the tenant's pods everything."""
    name = view.resource.metadata.name
    return document(
        _API,
        "NetworkPolicy",
        view,
        "tenant",
        f"{name}-default-deny",
        spec={
            "podSelector": {"matchLabels": {TENANT_LABEL: name, **MANAGED_BY}},
            "policyTypes": ["Ingress", "Egress"],
        },
    )


def ingest(view: PipelineView) -> Object:
    """Return ingest's policy: senders of its own namespace, of the ingress controller's, the
    platform's, and those that the pipeline names; out to Redis and DNS."""
    network = view.config.network
    named = view.resource.spec.network_policy.ingress_namespaces
    namespaces = {network.ingress_namespace, view.config.namespace, *named} - {""}
    senders = [{"podSelector": {}}, *_namespaces(sorted(namespaces))]
    return _policy(
        view,
        "ingest",
        [{"from": senders, "ports": [_tcp(HTTP_PORT)]}, *_monitored(view)],
        [_tcp(network.redis_port)],
    )


def collector(view: PipelineView) -> Object:
    """Return the collectors' policy: out to Redis, PostgreSQL and DNS."""
    network = view.config.network
    servers = [_tcp(network.redis_port), _tcp(network.postgres_port)]
    return _policy(view, "collector", _monitored(view), servers)


def _policy(
    view: PipelineView, component: Component, into: list[Object], servers: list[Object]
) -> Object:
    # Servers are let through by port alone: they may stand anywhere, in the cluster or outside.
    dns = [
        {"protocol": protocol, "port": port}
        for port in view.config.network.dns_ports
        for protocol in ("UDP", "TCP")
    ]
    spec: Object = {
        "podSelector": {"matchLabels": selector(view, component)},
        "policyTypes": ["Ingress", "Egress"],
        "egress": [{"ports": servers}, {"ports": dns}],
    }
    if into:
        spec["ingress"] = into
    return document(_API, "NetworkPolicy", view, component, view.child(component), spec=spec)


def _monitored(view: PipelineView) -> list[Object]:
    found = view.config.network.monitoring_namespace
    return [{"from": _namespaces([found]), "ports": [_tcp(OPS_PORT)]}] if found else []


def _namespaces(names: Iterable[str]) -> list[Object]:
    return [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
        for name in names
    ]


def _tcp(port: int) -> Object:
    return {"protocol": "TCP", "port": port}
