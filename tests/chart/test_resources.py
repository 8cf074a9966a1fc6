"""What the chart does with LogTenants and LogPipelines: protects them, and counts them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import helming
import pytest
import reconciling
from controlplane.api import ApiError, until
from controlplane.plane import Plane
from helming import CHART

from logweir.core import errors
from logweir_operator import kube, smoke


def placed(one: helming.Object, namespace: str) -> helming.Object:
    return {**one, "metadata": {**one["metadata"], "namespace": namespace}}


@pytest.fixture
def policy(plane: Plane, namespace: str) -> Iterator[str]:
    """A release of the cluster's objects alone, for one namespace; yields that."""
    where = ("--kubeconfig", plane.kubeconfig, "--namespace", namespace)
    values = ("--values", CHART / "ci" / "cluster-objects-values.yaml")
    scope = f"scope.mode=Namespaced,scope.namespaces={{{namespace}}},crds.install=false"
    helming.helm("install", f"lw-{namespace}", CHART, *values, "--set", scope, *where)
    yield namespace
    helming.helm("uninstall", f"lw-{namespace}", *where)


def test_a_protected_tenant_is_not_deleted_before_its_protection_ends(plane, policy):
    plane.api.apply(
        placed(reconciling.tenant("kept", deletionProtection=True), policy),
        placed(reconciling.tenant("other"), policy),
    )

    def refused() -> bool:
        """A policy that was just made takes a moment to be in force; a dry run asks for that."""
        with contextlib.suppress(ApiError):
            plane.api.delete("LogTenant", "kept", policy, dryRun=["All"])
            return False
        return True

    until(refused)
    with pytest.raises(ApiError, match="set it to false first") as answer:
        plane.api.delete("LogTenant", "kept", policy)
    assert answer.value.code == 403
    plane.api.delete("LogTenant", "other", policy)

    plane.api.patch("LogTenant", "kept", policy, {"spec": {"deletionProtection": False}})
    plane.api.delete("LogTenant", "kept", policy)
    assert plane.api.list("LogTenant", policy) == []


@contextlib.asynccontextmanager
async def requests(plane: Plane) -> AsyncIterator[kube.Kube]:
    api = kube.Kube(await kube.access(str(plane.kubeconfig)))
    yield api
    await api.close()


async def test_an_uninstall_names_what_it_would_leave_behind(plane, namespace):
    other = plane.make_namespace()
    plane.api.apply(
        placed(reconciling.tenant("acme"), namespace),
        placed(reconciling.pipeline("web"), namespace),
        placed(reconciling.tenant("elsewhere"), other),
    )
    async with requests(plane) as api:
        with pytest.raises(errors.SetupError) as refusal:
            await smoke.guard(api, [namespace])
        everywhere = await smoke.left(api, [])

        assert f"LogTenant {namespace}/acme, LogPipeline {namespace}/web" in str(refusal.value)
        assert "elsewhere" not in str(refusal.value)
        assert f"LogTenant {other}/elsewhere" in everywhere

        plane.api.delete("LogTenant", "acme", namespace)
        plane.api.delete("LogPipeline", "web", namespace)
        await smoke.guard(api, [namespace])
    plane.api.delete("LogTenant", "elsewhere", other)


async def test_the_smoke_test_says_when_no_operator_works(plane, namespace, monkeypatch):
    monkeypatch.setattr(smoke, "READY_S", 0.2)
    async with requests(plane) as api:
        with pytest.raises(errors.UnavailableError, match="does the operator run"):
            await smoke.run(api, namespace, "lw-test", "http://127.0.0.1:1", lambda text: None)

    assert plane.api.list("LogTenant", namespace) == []
    assert plane.api.list("LogPipeline", namespace) == []
