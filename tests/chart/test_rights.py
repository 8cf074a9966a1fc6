"""The operator under the chart's ServiceAccount: what it asks for is what it is granted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import helming
import pytest
from controlplane import audit
from controlplane.audit import Right
from controlplane.plane import Plane
from helming import CHART

SELDOM = {"get", "delete"}
"""Verbs for objects that are foreign, or not wanted any more: here not of each kind."""

RARE = {("events", "create", ""), ("deployments/scale", "patch", "")}
"""Rights that so short a life need not use; a change of the roots' Secret is another."""

Install = Callable[[str], Path]


@pytest.fixture
def installed(plane: Plane, namespace: str) -> Install:
    """Installs the chart for a place, and returns the operator's kubeconfig: its rights are what
    is wanted of it."""
    where = ("--kubeconfig", plane.kubeconfig, "--namespace", namespace)

    def install(release: str) -> Path:
        helming.helm(
            "install",
            release,
            CHART,
            *("--values", CHART / "ci" / "namespaced-values.yaml"),
            *("--set", f"scope.namespaces={{{namespace}}},fullnameOverride={release}"),
            *where,
        )
        return plane.kubeconfig_of(namespace, f"{release}-operator")

    return install


async def test_what_the_operator_asks_for_is_what_it_is_granted(
    plane, namespace, tmp_path, postgres, valkey, roots, installed
):
    from operating import operating, until

    async with operating(tmp_path, plane, namespace, postgres, valkey, roots) as place:
        kubeconfig = await asyncio.to_thread(installed, place.release)
        account = f"{place.release}-operator"
        mark = audit.mark(plane)
        await place.start(kubeconfig)
        await place.apply_tenant(quotas={"namespaceQuota": {"hard": {"pods": "50"}}})
        await place.apply_pipeline(exposure={"type": "Ingress", "host": "logs.example.com"})
        await place.ready("LogTenant", "acme")

        async def is_made(name: str = "web-collector") -> bool:
            return await place.find("Deployment", name) is not None

        await until(is_made)
        await place.delete("Deployment", "web-collector")
        await until(is_made)
        await place.delete("LogPipeline", "web")
        await place.delete("LogTenant", "acme")

        async def is_gone() -> bool:
            return not (await place.list("LogTenant") or await place.list("LogPipeline"))

        await until(is_gone, wait_s=40)
        await place.stop()

    seen = audit.requests(plane, namespace, account, mark)
    implied = [
        Right("logweir.dev", f"{kind}/finalizers", "update", namespace)
        for kind in ("logtenants", "logpipelines")
    ]
    found = audit.compare(seen, audit.grants(plane.api, namespace, account), implied)

    assert found.missing == ()
    unused = {one[1:3] + one[4:] for one in found.unused if one.verb not in SELDOM}
    assert unused <= {*RARE, ("secrets", "patch", f"{place.release}-roots")}
