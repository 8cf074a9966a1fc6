"""Services, Ingress and HTTPRoute of a pipeline, and its base URL. Pure."""

from __future__ import annotations

from logweir_operator.model import LogPipeline, ParentRef
from logweir_operator.objects.view import (
    HTTP_PORT,
    OPS_PORT,
    Object,
    PipelineView,
    document,
    selector,
)

SERVICE_PORT = 80


def base_path(tenant: str, pipeline: str) -> str:
    """Return the path of a pipeline's base URL."""
    return f"/t/{tenant}/{pipeline}"


def url(resource: LogPipeline, tenant: str) -> str:
    """Return the base URL of a pipeline: from outside when it is exposed, else of its Service.

    Whether a Gateway speaks TLS stands in the Gateway; a parent whose `sectionName` begins with
    https says so.
    """
    exposure, name = resource.spec.exposure, resource.metadata.name
    if exposure.type == "None":
        host, is_tls = f"{name}-ingest.{resource.metadata.namespace}.svc", False
    else:
        host = exposure.host
        is_tls = (
            bool(exposure.tls_secret_name)
            if exposure.type == "Ingress"
            else any(parent.section_name.startswith("https") for parent in exposure.parent_refs)
        )
    return f"{'https' if is_tls else 'http'}://{host}{base_path(tenant, name)}"


def service(view: PipelineView) -> Object:
    """Return ingest's Service."""
    return document(
        "v1",
        "Service",
        view,
        "ingest",
        view.child("ingest"),
        spec={
            "type": "ClusterIP",
            "selector": selector(view, "ingest"),
            "ports": [_port("http", SERVICE_PORT, HTTP_PORT), _port("metrics", OPS_PORT, OPS_PORT)],
        },
    )


def metrics_service(view: PipelineView) -> Object:
    """Return the collectors' Service, by which their metrics are found; it has no address."""
    return document(
        "v1",
        "Service",
        view,
        "collector",
        view.child("collector"),
        spec={
            "type": "ClusterIP",
            "clusterIP": "None",
            "selector": selector(view, "collector"),
            "ports": [_port("metrics", OPS_PORT, OPS_PORT)],
        },
    )


def _port(name: str, port: int, target: int) -> Object:
    return {"name": name, "port": port, "targetPort": target, "protocol": "TCP"}


def route(view: PipelineView) -> Object | None:
    """Return the Ingress or HTTPRoute; None when nothing is asked for, or its kind is not there."""
    kind = view.resource.spec.exposure.type
    if kind == "Ingress":
        return _ingress(view)
    if kind == "HTTPRoute" and kind in view.served_kinds:
        return _http_route(view)
    return None


def _ingress(view: PipelineView) -> Object:
    exposure = view.resource.spec.exposure
    backend = {"service": {"name": view.child("ingest"), "port": {"name": "http"}}}
    path = {
        "path": base_path(view.tenant, view.name),
        "pathType": "Prefix",
        "backend": backend,
    }
    spec: Object = {"rules": [{"host": exposure.host, "http": {"paths": [path]}}]}
    if exposure.ingress_class_name:
        spec["ingressClassName"] = exposure.ingress_class_name
    if exposure.tls_secret_name:
        spec["tls"] = [{"hosts": [exposure.host], "secretName": exposure.tls_secret_name}]
    return document(
        "networking.k8s.io/v1",
        "Ingress",
        view,
        "ingest",
        view.child("ingest"),
        annotations=exposure.annotations,
        spec=spec,
    )


def _http_route(view: PipelineView) -> Object:
    exposure = view.resource.spec.exposure
    match = {"path": {"type": "PathPrefix", "value": base_path(view.tenant, view.name)}}
    backend = {
        "group": "",
        "kind": "Service",
        "name": view.child("ingest"),
        "port": SERVICE_PORT,
        "weight": 1,
    }
    return document(
        "gateway.networking.k8s.io/v1",
        "HTTPRoute",
        view,
        "ingest",
        view.child("ingest"),
        annotations=exposure.annotations,
        spec={
            "parentRefs": [_parent(one) for one in exposure.parent_refs],
            "hostnames": [exposure.host],
            "rules": [{"matches": [match], "backendRefs": [backend]}],
        },
    )


def _parent(one: ParentRef) -> Object:
    found: Object = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": one.name}
    if one.namespace:
        found["namespace"] = one.namespace
    if one.section_name:
        found["sectionName"] = one.section_name
    return found
