"""Views of tenants and pipelines as the operator would have them, for tests of their objects."""

from __future__ import annotations

from typing import Any

from logweir.core.binding import Login
from logweir.core.names import PipelineId
from logweir_operator import manifest
from logweir_operator.config import Config, Features, Image, Network
from logweir_operator.manifests import PipelineView, TenantView

CONFIG = Config(
    namespace="logweir-system",
    release="logweir",
    image=Image(repository="registry.example/logweir", tag="1.0.0"),
    features=Features(http_routes=True, keda=True, monitoring=True, namespace_quota=True),
    network=Network(monitoring_namespace="monitoring", ingress_namespace="ingress"),
)
EVERY_KIND = frozenset(
    {"HTTPRoute", "ServiceMonitor", "PrometheusRule", "ScaledObject", "TriggerAuthentication"}
)
SECRETS = {"ingest": b"the ingest password", "collector": b"the collector password"}
KEY = "lwi_the_text_of_a_key"
UID = "11111111-2222-3333-4444-555555555555"

EVERYTHING: dict[str, Any] = {
    "ingest": {
        "replicas": 3,
        "resources": {"requests": {"cpu": "1000m", "memory": "1024Mi"}, "limits": {"cpu": 2}},
        "disruptionBudget": {"minAvailable": "50%"},
        "pod": {
            "labels": {"team": "web"},
            "annotations": {
                "example.com/note": "yes",
                "container.apparmor.security.beta.kubernetes.io/ingest": "unconfined",
            },
            "nodeSelector": {"disk": "fast"},
            "priorityClassName": "high",
            "imagePullSecrets": [{"name": "pull"}],
            "tolerations": [{"key": "logs", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}
                        ]
                    }
                }
            },
            "topologySpreadConstraints": [
                {"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}
            ],
        },
    },
    "collector": {
        "resources": {"limits": {"memory": "1.5Gi"}},
        "autoscaling": {
            "driver": "KEDA",
            "minReplicas": 0,
            "fallbackReplicas": 2,
            "targetBacklogBytes": 1 << 20,
        },
    },
    "exposure": {
        "type": "Ingress",
        "host": "logs.example.com",
        "ingressClassName": "nginx",
        "tlsSecretName": "tls",
        "annotations": {"nginx.ingress.kubernetes.io/proxy-body-size": "8m"},
    },
    "networkPolicy": {"ingressNamespaces": ["shop", "billing"]},
    "monitoring": {"lagAlertSeconds": 120},
}


def tenant_view(name="acme", spec=None, namespace="team", **rest) -> TenantView:
    document = {
        "apiVersion": "logweir.dev/v1alpha1",
        "kind": "LogTenant",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec or {},
    }
    known = {
        "resource": manifest.resource(document),
        "uid": UID,
        "tenant": "acme-co",
        "key_texts": {"agents": KEY},
        "urls": {"agents": "http://web-ingest.team.svc/t/acme-co/web"},
        "config": CONFIG,
    }
    return TenantView(**(known | rest))


def pipeline_view(name="web", spec=None, namespace="team", **rest) -> PipelineView:
    document = {
        "apiVersion": "logweir.dev/v1alpha1",
        "kind": "LogPipeline",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"tenantRef": {"name": "acme"}, **(spec or {})},
    }
    known = {
        "resource": manifest.resource(document),
        "uid": UID,
        "tenant_name": "acme",
        "tenant": "acme-co",
        "pipeline": PipelineId(7),
        "ingest_binding": SECRETS["ingest"],
        "collector_binding": SECRETS["collector"],
        "cas": {"postgres-ca.crt": b"pg", "redis-ca.crt": b"redis"},
        "config": CONFIG,
        "redis": ("redis.data:6379", Login("t_acme-co.col", "the redis password")),
    }
    return PipelineView(**(known | rest))
