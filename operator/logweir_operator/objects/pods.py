"""Deployments of ingest and collectors. Pure.

Pods meet the Pod Security level `restricted`. A change of credentials is no change here: the roles
read the mounted Secret again by themselves, so a rotation rolls nothing.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from logweir_operator.config import BINDING_FOLDER
from logweir_operator.model import Pod, Resources
from logweir_operator.objects.quantities import all_canonical
from logweir_operator.objects.view import (
    HTTP_PORT,
    OPS_PORT,
    Component,
    Object,
    PipelineView,
    document,
    labels,
    selector,
)

BINDING_KEY: Final = "binding.json"
USER: Final = 65532

GRACE_S: Final = 30
LEAVE_S: Final = 5
"""Ingest goes on for so long after its end is wanted: until then proxies may send it new
connections, as they hear of the end at the same time as it does. Its requests have 10 s more."""

_DEFAULT_RESOURCES: Final[dict[str, Object]] = {
    # Ingest holds up to 128 MiB of bodies, a collector up to 256 MiB of columns, beside itself. A
    # limit of CPU would only make both late.
    "ingest": {
        "requests": {"cpu": "100m", "memory": "160Mi"},
        "limits": {"memory": "512Mi"},
    },
    "collector": {
        "requests": {"cpu": "100m", "memory": "256Mi"},
        "limits": {"memory": "1Gi"},
    },
}

_APPARMOR: Final = "container.apparmor.security.beta.kubernetes.io/"
"""Annotations with this prefix are a security context by another name."""


def ingest(view: PipelineView) -> Object:
    """Return the ingest Deployment."""
    spec = view.resource.spec.ingest
    container = _container(view, "ingest", spec.resources)
    container["args"] += ["--listen", f"0.0.0.0:{HTTP_PORT}"]
    container["ports"].insert(0, _port("http", HTTP_PORT))
    container["lifecycle"] = {"preStop": {"sleep": {"seconds": LEAVE_S}}}
    return _deployment(view, "ingest", spec.pod, container, replicas=spec.replicas)


def collector(view: PipelineView) -> Object:
    """Return the collector Deployment; never with replicas, which whoever scales it writes."""
    spec = view.resource.spec.collector
    container = _container(view, "collector", spec.resources)
    name = {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}
    container["env"] = [{"name": "LOGWEIR_CONSUMER", "valueFrom": name}]
    return _deployment(view, "collector", spec.pod, container)


def _container(view: PipelineView, component: Component, resources: Resources) -> Object:
    image = view.config.image
    return {
        "name": component,
        "image": image.reference,
        "imagePullPolicy": image.pull_policy,
        "args": [
            "run",
            component,
            "--binding",
            f"{BINDING_FOLDER}/{BINDING_KEY}",
            "--ops",
            f"0.0.0.0:{OPS_PORT}",
        ],
        "ports": [_port("metrics", OPS_PORT)],
        "resources": _resources(component, resources),
        # Imports take seconds on a busy node; after that a pod that does not answer is stuck.
        "startupProbe": _probe("/livez", period_s=2, failures=60),
        "readinessProbe": _probe("/readyz", period_s=5, failures=2),
        "livenessProbe": _probe("/livez", period_s=10, failures=6),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": "binding", "mountPath": BINDING_FOLDER, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - of the pod
        ],
    }


def _port(name: str, number: int) -> Object:
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def _probe(path: str, *, period_s: int, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": "metrics", "scheme": "HTTP"},
        "periodSeconds": period_s,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _resources(component: Component, wanted: Resources) -> Object:
    """What the pipeline says, and nothing else once it says anything: a default limit may lie
    below a request of the user's."""
    if not wanted.requests and not wanted.limits:
        return _DEFAULT_RESOURCES[component]
    found = {
        "requests": all_canonical(wanted.requests),
        "limits": all_canonical(wanted.limits),
    }
    return {name: values for name, values in found.items() if values}


def _deployment(
    view: PipelineView,
    component: Component,
    pod: Pod,
    container: Object,
    *,
    replicas: int | None = None,
) -> Object:
    spec: Object = {
        "selector": {"matchLabels": selector(view, component)},
        "revisionHistoryLimit": 3,
        "progressDeadlineSeconds": 600,
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "25%"},
        },
        "template": {
            "metadata": _template_metadata(view, component, pod),
            "spec": _pod_spec(view, component, pod, container),
        },
    }
    if replicas is not None:
        spec["replicas"] = replicas
    return document("apps/v1", "Deployment", view, component, view.child(component), spec=spec)


def _template_metadata(view: PipelineView, component: Component, pod: Pod) -> Object:
    found: Object = {"labels": {**pod.labels, **labels(view, component)}}
    annotations = {
        name: value for name, value in pod.annotations.items() if not name.startswith(_APPARMOR)
    }
    if annotations:
        found["annotations"] = annotations
    return found


def _pod_spec(view: PipelineView, component: Component, pod: Pod, container: Object) -> Object:
    pull_secrets = [*view.config.image_pull_secrets, *(one.name for one in pod.image_pull_secrets)]
    spec: Object = {
        "serviceAccountName": view.child(component),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {
                "name": "binding",
                "secret": {"secretName": view.binding_secret(component), "defaultMode": 0o440},
            },
            {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
        ],
        "topologySpreadConstraints": _spread(view, component, pod),
    }
    placement = {
        "nodeSelector": dict(pod.node_selector),
        "tolerations": [*pod.tolerations],
        "affinity": dict(pod.affinity),
        "priorityClassName": pod.priority_class_name,
        "imagePullSecrets": [{"name": name} for name in dict.fromkeys(pull_secrets)],
    }
    spec.update({name: value for name, value in placement.items() if value})
    return spec


def _spread(view: PipelineView, component: Component, pod: Pod) -> list[Any]:
    """Over nodes and zones as far as it goes, or as the pipeline says. A constraint that selects no
    pods does nothing, so one without a selector is meant for the pods that it stands in."""
    own = {"matchLabels": selector(view, component)}
    if pod.topology_spread_constraints:
        return [{"labelSelector": own, **one} for one in pod.topology_spread_constraints]
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": own,
            "matchLabelKeys": ["pod-template-hash"],
        }
        for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
    ]


def disruption_budget(view: PipelineView) -> Object | None:
    """Return ingest's PodDisruptionBudget; None for a single pod of which nothing is said: it would
    hold up each drain of a node for ever."""
    spec = view.resource.spec.ingest
    if spec.disruption_budget is not None:
        given = msgspec.structs.asdict(spec.disruption_budget)
        names = {"min_available": "minAvailable", "max_unavailable": "maxUnavailable"}
        bound = {names[name]: value for name, value in given.items() if value is not None}
    elif spec.replicas > 1:
        bound = {"maxUnavailable": 1}
    else:
        return None
    return document(
        "policy/v1",
        "PodDisruptionBudget",
        view,
        "ingest",
        view.child("ingest"),
        spec={
            **bound,
            "selector": {"matchLabels": selector(view, "ingest")},
            # Pods that do not work anyway hold up nobody's drain.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    )


def service_account(view: PipelineView, component: Component) -> Object:
    """Return a component's ServiceAccount, which nobody logs in with."""
    return document(
        "v1",
        "ServiceAccount",
        view,
        component,
        view.child(component),
        automountServiceAccountToken=False,
    )
