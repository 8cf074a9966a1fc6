"""The Kubernetes objects of a tenant and of a pipeline, in the order of applying. Pure.

TenantView, PipelineView -> Secrets, accounts, policies, workloads, Services, exposure, monitoring

Nothing is exposed before it can answer: an Ingress comes after the Service, that after the pods.
"""

from __future__ import annotations

from logweir_operator.config import POSTGRES_CA, REDIS_CA
from logweir_operator.objects import exposure, keda, monitoring, network, pods, quantities
from logweir_operator.objects.view import (
    Component,
    Object,
    PipelineView,
    TenantView,
    document,
    secret,
    short,
)

__all__ = [
    "PipelineView",
    "TenantView",
    "key_secret_name",
    "pipeline_objects",
    "tenant_objects",
    "url",
]

url = exposure.url


def key_secret_name(tenant: str, key: str) -> str:
    """Return the name of the Secret with an API key of a LogTenant."""
    return short(f"{tenant}-key-{key}")


def tenant_objects(view: TenantView) -> list[Object]:
    """Return the objects of a LogTenant."""
    spec, name = view.resource.spec, view.resource.metadata.name
    found = [
        secret(
            view,
            "tenant",
            key_secret_name(name, key),
            {"key": text, **({"url": view.urls[key]} if key in view.urls else {})},
        )
        for key, text in sorted(view.key_texts.items())
    ]
    if spec.network_policy.enabled:
        found.append(network.default_deny(view))
    quota = spec.quotas.namespace_quota
    if quota is not None and view.config.features.namespace_quota:
        hard = quantities.all_canonical(quota.hard)
        found.append(document("v1", "ResourceQuota", view, "tenant", name, spec={"hard": hard}))
    return found


def pipeline_objects(view: PipelineView) -> list[Object]:
    """Return the objects of a LogPipeline.

    Before its place in the servers is made it has only what needs no credentials; while it is
    deleted only what collectors need to drain it.
    """
    has_ingest = view.is_open
    components: list[Component] = ["ingest", "collector"] if has_ingest else ["collector"]
    accounts = [pods.service_account(view, one) for one in components]
    policies = _policies(view, components)
    if not view.collector_binding:
        return [*accounts, *policies]
    found = [_binding(view, one) for one in components]
    found += [*accounts, *policies]
    if has_ingest:
        found += [one for one in (pods.ingest(view), pods.disruption_budget(view)) if one]
    found += [pods.collector(view), *keda.objects(view)]
    monitored = monitoring.objects(view) if has_ingest else []
    if has_ingest:
        found.append(exposure.service(view))
    if monitored:
        found.append(exposure.metrics_service(view))
    if has_ingest and (route := exposure.route(view)):
        found.append(route)
    return [*found, *monitored]


def _policies(view: PipelineView, components: list[Component]) -> list[Object]:
    if not view.resource.spec.network_policy.enabled:
        return []
    by_component = {"ingest": network.ingest, "collector": network.collector}
    return [by_component[one](view) for one in components]


def _binding(view: PipelineView, component: Component) -> Object:
    values: dict[str, bytes | str] = {}
    if component == "ingest":
        values[pods.BINDING_KEY] = view.ingest_binding
        needed = {REDIS_CA}
    else:
        values[pods.BINDING_KEY] = view.collector_binding
        values |= keda.secret_values(view)
        needed = {REDIS_CA, POSTGRES_CA}
    values |= {name: text for name, text in view.cas.items() if name in needed}
    return secret(view, component, view.binding_secret(component), values)
