"""ServiceMonitor and PrometheusRule of a pipeline. Pure."""

from __future__ import annotations

from logweir_operator.objects.view import Object, PipelineView, document, selector

_API = "monitoring.coreos.com/v1"


def objects(view: PipelineView) -> list[Object]:
    """Return what Prometheus' operator takes, as far as it is there and wanted."""
    if view.resource.spec.monitoring.mode == "Disabled":
        return []
    found = []
    if "ServiceMonitor" in view.served_kinds:
        found.append(_monitor(view))
    if "PrometheusRule" in view.served_kinds:
        found.append(_rule(view))
    return found


def _monitor(view: PipelineView) -> Object:
    common = selector(view, "ingest")
    del common["app.kubernetes.io/component"]
    return document(
        _API,
        "ServiceMonitor",
        view,
        "ingest",
        view.name,
        spec={
            "selector": {"matchLabels": common},
            "endpoints": [{"port": "metrics", "path": "/metrics"}],
        },
    )


def _rule(view: PipelineView) -> Object:
    of = f'tenant="{view.tenant}",pipeline="{view.name}"'
    lag_s = view.resource.spec.monitoring.lag_alert_seconds
    up = f'up{{namespace="{view.namespace}",job="{view.child("ingest")}"}}'
    rules = [
        _alert(
            view,
            "LogweirPipelineBehind",
            "max by (tenant, pipeline)"
            f" (logweir_operator_journal_oldest_seconds{{{of}}}) > {lag_s}",
            "1m",
            f"Records wait for longer than {lag_s} s to be stored. Look at the condition"
            " ScalingActive, at the collectors' log and at PostgreSQL.",
        ),
        _alert(
            view,
            "LogweirIngestUnavailable",
            f"sum({up}) == 0 or absent({up})",
            "5m",
            "No ingest pod answers; senders are refused. Look at the pods of the Deployment"
            f" {view.child('ingest')}.",
        ),
        _alert(
            view,
            "LogweirCollectorsAtMaximum",
            f"max by (tenant, pipeline) (logweir_operator_collectors_at_maximum{{{of}}}) == 1",
            "10m",
            "More collectors are needed than there may be. Raise"
            " spec.collector.autoscaling.maxReplicas, or the tenant's postgres.connectionLimit.",
        ),
    ]
    return document(
        _API,
        "PrometheusRule",
        view,
        "ingest",
        view.name,
        spec={"groups": [{"name": f"logweir-{view.namespace}-{view.name}", "rules": rules}]},
    )


def _alert(view: PipelineView, name: str, expression: str, after: str, what: str) -> Object:
    where = {"namespace": view.namespace, "logpipeline": view.name}
    return {
        "alert": name,
        "expr": expression,
        "for": after,
        "labels": {"severity": "warning", **where},
        "annotations": {
            "summary": f"LogPipeline {view.namespace}/{view.name}",
            "description": what,
        },
    }
