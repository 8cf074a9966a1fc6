"""An operator with rights in some namespaces alone, one of which is deleted."""

from __future__ import annotations

import asyncio

import helming
from helming import CHART
from operating import operating, until

from logweir_operator.cache import FINALIZER


async def installed(place, cluster, home, watched) -> str:
    """Install the chart for its operator's rights, and start that; return its account."""
    await asyncio.to_thread(
        helming.helm,
        "install",
        place.release,
        CHART,
        *("--values", CHART / "ci" / "namespaced-values.yaml"),
        *("--set", f"scope.namespaces={{{watched}}},fullnameOverride={place.release}"),
        *("--kubeconfig", cluster.kubeconfig, "--namespace", home, "--no-hooks"),
    )
    account = f"{place.release}-operator"
    await place.start(cluster.kubeconfig_of(home, account))
    return account


async def test_a_namespace_with_a_tenant_goes_when_it_is_deleted(
    cluster, tmp_path, postgres, valkey, roots
):
    home, watched = cluster.make_namespace(), cluster.make_namespace()
    async with operating(tmp_path, cluster, watched, postgres, valkey, roots, home) as place:
        account = await installed(place, cluster, home, watched)
        await place.apply_tenant(deletionPolicy="Delete")
        await place.apply_pipeline()
        await place.ready("LogPipeline", "web")
        rights = f"{account}-resources"

        async def are_kept() -> bool:
            found = [await place.get(kind, rights) for kind in ("Role", "RoleBinding")]
            return all(FINALIZER in one["metadata"].get("finalizers", ()) for one in found)

        await until(are_kept)
        cluster.api.delete("Namespace", watched)

        async def is_gone() -> bool:
            return await asyncio.to_thread(cluster.api.find, "Namespace", watched) is None

        await until(is_gone, 60, lambda: asyncio.to_thread(left, cluster, watched))
        assert await place.states() == []
        await place.stop()


def left(cluster, namespace):
    return cluster.api.get("Namespace", namespace)["status"]


async def test_rights_go_with_the_release_when_nothing_needs_them(
    cluster, tmp_path, postgres, valkey, roots
):
    home, watched = cluster.make_namespace(), cluster.make_namespace()
    async with operating(tmp_path, cluster, watched, postgres, valkey, roots, home) as place:
        where = ("--kubeconfig", cluster.kubeconfig, "--namespace", home, "--no-hooks")
        account = await installed(place, cluster, home, watched)
        await place.apply_tenant(deletionPolicy="Delete")
        await place.ready("LogTenant", "acme")
        await place.delete("LogTenant", "acme")

        async def is_free() -> bool:
            found = await place.get("Role", f"{account}-resources")
            return not found["metadata"].get("finalizers") and not await place.list("LogTenant")

        await until(is_free, 40)
        await place.stop()
        await asyncio.to_thread(helming.helm, "uninstall", place.release, *where)
        assert await place.find("Role", f"{account}-resources") is None
