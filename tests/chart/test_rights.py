"""The operator under the chart's ServiceAccount: what it asks for is what it is granted."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import helming
import pytest
from controlplane import audit
from controlplane.audit import Right
from controlplane.plane import Plane
from helming import CHART
from operating import Place, operating, until

from logweir.backends import redis_client, rotations
from logweir.core import names
from logweir_operator.config import Scope
from logweir_operator.own_secrets import ROOTS_KEY, roots_name

SCOPES = {
    "Namespaced": ("--values", CHART / "ci" / "namespaced-values.yaml"),
    "Cluster": (
        *("--values", CHART / "ci" / "external-values.yaml"),
        *("--set", "crds.install=false,admissionPolicy.enabled=false,rbac.aggregate=false"),
    ),
}


def install(plane: Plane, namespace: str, release: str, scope: str) -> Path:
    """Install the chart for a place, and return the operator's kubeconfig: its rights are what is
    wanted of it."""
    watched = f",scope.namespaces={{{namespace}}}" if scope == "Namespaced" else ""
    helming.helm(
        *("install", release, CHART, *SCOPES[scope]),
        *("--set", f"fullnameOverride={release}{watched}"),
        *("--kubeconfig", plane.kubeconfig, "--namespace", namespace),
    )
    return plane.kubeconfig_of(namespace, f"{release}-operator")


@pytest.mark.parametrize("scope", SCOPES)
async def test_what_the_operator_asks_for_is_what_it_is_granted(
    start_plane, tmp_path, postgres, valkey, roots, scope
):
    """On an API server of its own: in Cluster scope it looks after all that is there."""
    plane = await asyncio.to_thread(start_plane)
    namespace = plane.make_namespace()
    wide = {"scope": Scope()} if scope == "Cluster" else {}
    # New roots are made, but not used: the databases are everybody's.
    async with operating(
        tmp_path, plane, namespace, postgres, valkey, roots, spread_s=3600.0, **wide
    ) as place:
        kubeconfig = await asyncio.to_thread(install, plane, namespace, place.release, scope)
        account = f"{place.release}-operator"
        mark = audit.mark(plane)
        await place.start(kubeconfig)
        await place.apply_tenant(quotas={"namespaceQuota": {"hard": {"pods": "50"}}})
        await place.apply_pipeline(
            exposure={"type": "Ingress", "host": "logs.example.com"},
            collector={"autoscaling": {"minReplicas": 2}},
        )
        await place.ready("LogTenant", "acme")

        async def is_scaled() -> bool:
            found = await place.find("Deployment", "web-collector")
            return found is not None and found["spec"]["replicas"] == 2

        await until(is_scaled)
        await place.apply_tenant(quotas={})
        await until(lambda: is_gone(place, "ResourceQuota", "acme"))
        await place.control.ask(rotations.ROOTS, None)

        async def has_two() -> bool:
            secret = await place.get("Secret", roots_name(place.release))
            return len(json.loads(base64.b64decode(secret["data"][ROOTS_KEY]))["roots"]) == 2

        await until(has_two)
        async with one_block(place):  # so its ingest goes, and collectors stay for it
            await place.delete("LogPipeline", "web")
            await until(lambda: is_gone(place, "Service", "web-ingest"))
        await until(lambda: is_gone(place, "LogPipeline", "web"))
        await place.delete("LogTenant", "acme")
        await until(lambda: is_gone(place, "LogTenant", "acme"), wait_s=40)
        await place.stop()

    seen = audit.requests(plane, namespace, account, mark)
    implied = [
        Right("logweir.dev", f"{kind}/finalizers", "update", namespace)
        for kind in ("logtenants", "logpipelines")
    ]
    granted = audit.grants(plane.api, namespace, account)
    assert audit.compare(seen, granted, implied) == audit.EQUAL


async def is_gone(place: Place, kind: str, name: str) -> bool:
    return await place.find(kind, name) is None


@contextlib.asynccontextmanager
async def one_block(place: Place) -> AsyncIterator[None]:
    """A block in the journal of the only pipeline."""
    [row] = [one for one in await place.control.tenants() if one.cluster == place.config.cluster]
    [pipeline] = [one for one in await place.control.pipelines() if one.tenant == row.id]
    servers = place.config.servers()
    journal = redis_client.client(servers.journal, servers.journal_login)
    stream = names.journal_pipeline(row.id, pipeline.id) + "q"
    try:
        entry = await journal.xadd(stream, {"block": b"rubbish"})
        yield
        await journal.xdel(stream, entry)
    finally:
        await journal.aclose()
