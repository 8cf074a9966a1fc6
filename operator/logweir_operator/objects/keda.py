"""ScaledObject and TriggerAuthentication, for pipelines whose collectors KEDA scales. Pure."""

from __future__ import annotations

from typing import Final

from logweir.core import names
from logweir.core.names import TenantId
from logweir_operator.config import REDIS_CA
from logweir_operator.objects.view import Object, PipelineView, document

_API: Final = "keda.sh/v1alpha1"
ENTRY_BYTES: Final = 65_536
"""What an entry of the journal is taken to hold, as KEDA counts entries and not bytes."""

_POLL_S: Final = 15
_MINUTE_S: Final = 60


def secret_values(view: PipelineView) -> dict[str, str]:
    """Return what KEDA logs in with, for the collectors' Secret; nothing without KEDA."""
    if not view.scales_by_keda or view.redis is None:
        return {}
    address, login = view.redis
    return {
        "redis-address": address,
        "redis-username": login.user,
        "redis-password": login.password,
    }


def objects(view: PipelineView) -> list[Object]:
    """Return both objects; none unless KEDA is asked for and is there."""
    if not view.scales_by_keda or view.pipeline is None:
        return []
    return [_authentication(view), _scaled_object(view)]


def _authentication(view: PipelineView) -> Object:
    keys = {"address": "redis-address", "username": "redis-username", "password": "redis-password"}
    if view.redis_tls and REDIS_CA in view.cas:
        keys["ca"] = REDIS_CA
    name = view.binding_secret("collector")
    return document(
        _API,
        "TriggerAuthentication",
        view,
        "collector",
        view.child("collector"),
        spec={
            "secretTargetRef": [
                {"parameter": parameter, "name": name, "key": key}
                for parameter, key in keys.items()
            ]
        },
    )


def _scaled_object(view: PipelineView) -> Object:
    scaling = view.resource.spec.collector.autoscaling
    name = view.child("collector")
    spec: Object = {
        "scaleTargetRef": {"name": name},
        "pollingInterval": _POLL_S,
        "cooldownPeriod": scaling.idle_cooldown_seconds,
        "minReplicaCount": scaling.min_replicas,
        "maxReplicaCount": scaling.max_replicas,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(view)}},
        "triggers": [_trigger(view, name)],
    }
    if scaling.fallback_replicas is not None:
        spec["fallback"] = {"failureThreshold": 3, "replicas": scaling.fallback_replicas}
    return document(_API, "ScaledObject", view, "collector", name, spec=spec)


def _trigger(view: PipelineView, authentication: str) -> Object:
    """By the stream's length: entries are deleted when they are stored, so it is the backlog.

    Two traps: with a `consumerGroup` KEDA would count pending entries instead; and with an
    activation value, even of 0, some of its versions never wake what is at zero.
    """
    assert view.pipeline is not None  # noqa: S101 - as `scales_by_keda` says
    target = view.resource.spec.collector.autoscaling.target_backlog_bytes
    stream = names.journal_pipeline(TenantId(view.tenant), view.pipeline) + "q"
    return {
        "type": "redis-streams",
        "metadata": {
            "stream": stream,
            "streamLength": str(max(1, target // ENTRY_BYTES)),
            "databaseIndex": "0",
            "enableTLS": "true" if view.redis_tls else "false",
        },
        "authenticationRef": {"name": authentication},
    }


def _behavior(view: PipelineView) -> Object:
    scaling = view.resource.spec.collector.autoscaling
    up, down = scaling.scale_up, scaling.scale_down
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": up.stabilization_window_seconds,
            "selectPolicy": "Max",
            "policies": [
                _policy("Percent", up.max_percent_per_minute),
                _policy("Pods", up.max_pods_per_minute),
            ],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": down.stabilization_window_seconds,
            "policies": [_policy("Percent", down.max_percent_per_minute)],
        },
    }


def _policy(kind: str, value: int) -> Object:
    return {"type": kind, "value": value, "periodSeconds": _MINUTE_S}
