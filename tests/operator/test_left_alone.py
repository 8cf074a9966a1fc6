"""What must stay as it is when something about it is not known, not understood, or at rest."""

from __future__ import annotations

import asyncio

from operating import Object, Place, until

from logweir_operator import kube
from logweir_operator.making import Maker


async def running(operated: Place, *, key_for: str = "web") -> None:
    """A tenant whose key `in` is for one pipeline, and the pipeline."""
    await operated.start()
    await operated.apply_tenant(
        apiKeys=[
            {"name": "in", "scopes": ["ingest"], "pipeline": key_for},
            {"name": "out", "scopes": ["query"]},
        ]
    )
    await operated.apply_pipeline()
    await operated.ready("LogTenant", "acme")
    await operated.ready("LogPipeline", "web")
    await until(lambda: operated.find("Secret", "acme-key-in"))


async def keys(operated: Place) -> dict[str, Object]:
    names = ("acme-key-in", "acme-key-out")
    found = {name: await operated.find("Secret", name) for name in names}
    return {name: one["data"] for name, one in found.items() if one is not None}


async def passes(operated: Place, name: str) -> None:
    """Wait until the operator has looked at everything once more."""
    await operated.apply_tenant(name, apiKeys=[])
    await operated.ready("LogTenant", name)


async def test_a_tenant_that_cannot_be_made_after_a_restart_keeps_its_keys(
    operated: Place, monkeypatch
):
    await running(operated)
    before = await keys(operated)
    await operated.stop()

    async def fail(*_: object) -> None:
        raise RuntimeError("the schema is locked")

    with monkeypatch.context() as patch:
        patch.setattr(Maker, "_provision", fail)
        await operated.start()

        async def is_told() -> bool:
            one = await operated.condition("LogTenant", "acme")
            return "the schema is locked" in one.get("message", "")

        await until(is_told)
        await asyncio.sleep(0.5)  # in which keys would be taken away
        assert await keys(operated) == before
        tenant = (await operated.get("LogTenant", "acme"))["status"]
        assert len(tenant["apiKeys"]) == 2


async def test_a_key_of_a_pipeline_that_is_suspended_is_the_same_before_and_after(
    operated: Place,
):
    await running(operated)
    before = await keys(operated)
    await operated.apply_pipeline(suspend=True)

    async def is_suspended() -> bool:
        return (await operated.condition("LogPipeline", "web")).get("reason") == "Suspended"

    await until(is_suspended)
    await passes(operated, "other")
    assert await keys(operated) == before

    await operated.apply_pipeline(suspend=False)
    await operated.ready("LogPipeline", "web")
    await passes(operated, "third")
    assert await keys(operated) == before


async def test_a_key_goes_with_its_pipeline(operated: Place):
    await running(operated)
    await operated.delete("LogPipeline", "web")

    async def is_gone() -> bool:
        return set(await keys(operated)) == {"acme-key-out"}

    await until(is_gone)


async def test_a_tenant_without_our_finalizer_takes_nothing_down_and_gets_it_again(
    operated: Place,
):
    await running(operated)
    before = (await operated.get("Deployment", "web-ingest"))["metadata"]["uid"]
    await operated.patch("LogTenant", "acme", {"metadata": {"finalizers": []}})

    async def is_held() -> bool:
        return bool((await operated.get("LogTenant", "acme"))["metadata"].get("finalizers"))

    await until(is_held)
    await passes(operated, "other")
    assert (await operated.get("Deployment", "web-ingest"))["metadata"]["uid"] == before


async def test_a_tenant_that_waits_for_its_pipelines_lets_them_go_on(operated: Place):
    await running(operated)
    before = (await operated.get("Deployment", "web-ingest"))["metadata"]["uid"]
    await operated.delete("LogTenant", "acme")

    async def waits() -> bool:
        return "Delete them first" in (await operated.condition("LogTenant", "acme"))["message"]

    await until(waits)
    await passes(operated, "other")
    assert (await operated.get("Deployment", "web-ingest"))["metadata"]["uid"] == before
    assert (await operated.condition("LogPipeline", "web"))["reason"] == "Retrying"


async def test_one_that_comes_while_a_server_is_away_says_so_too(operated: Place):
    operated.break_databases()
    await operated.start()
    await operated.apply_tenant("first", apiKeys=[])

    async def is_named(name: str) -> bool:
        return (await operated.condition("LogTenant", name)).get("reason") == "Retrying"

    await until(lambda: is_named("first"))
    await operated.apply_tenant("late", apiKeys=[])
    await until(lambda: is_named("late"))


async def test_a_finalizer_that_cannot_be_taken_away_holds_up_no_other(operated: Place):
    class Stubborn(kube.Kube):
        """The API server lets nobody take the finalizer of `acme` away."""

        async def request(self, method, path, body=None, **options):  # type: ignore[no-untyped-def]
            is_last = isinstance(body, dict) and body["metadata"].get("finalizers") == []
            if method == "patch" and path.endswith("/logtenants/acme") and is_last:
                raise kube.KubeError("A webhook says no.")
            return await super().request(method, path, body, **options)

    await operated.start(door=Stubborn)
    await operated.apply_tenant(apiKeys=[])
    await operated.ready("LogTenant", "acme")
    await operated.delete("LogTenant", "acme")

    async def is_told() -> bool:
        return "A webhook says no" in (await operated.condition("LogTenant", "acme"))["message"]

    await until(is_told)
    await operated.apply_tenant("other", apiKeys=[])
    await operated.ready("LogTenant", "other")


async def test_the_next_of_a_name_is_another_one(operated: Place):
    await running(operated)
    before = await operated.get("LogPipeline", "web")
    await operated.delete("LogPipeline", "web")
    await until(lambda: gone(operated, "LogPipeline", "web"))
    await operated.apply_pipeline()
    await operated.ready("LogPipeline", "web")
    after = await operated.get("LogPipeline", "web")
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert after["status"]["pipelineId"] != before["status"]["pipelineId"]
    child = await operated.get("Deployment", "web-ingest")
    assert child["metadata"]["ownerReferences"][0]["uid"] == after["metadata"]["uid"]


async def gone(operated: Place, kind: str, name: str) -> bool:
    return await operated.find(kind, name) is None


async def test_reconcile_at_brings_back_what_somebody_took_in_postgresql(operated: Place):
    await running(operated)
    cluster = operated.config.cluster
    [row] = [one for one in await operated.control.tenants() if one.cluster == cluster]
    login = f"t_{row.id}_w_a"
    await operated.control._rows(f"alter role {login} connection limit 0")
    await operated.patch(
        "LogTenant", "acme", {"metadata": {"annotations": {"logweir.dev/reconcile-at": "now"}}}
    )

    async def is_back() -> bool:
        [found] = await operated.control._rows(
            "select rolconnlimit as most from pg_roles where rolname = %s", [login]
        )
        return bool(found["most"] != 0)

    await until(is_back)

    async def is_handled() -> bool:
        found = (await operated.get("LogTenant", "acme"))["status"]
        return found.get("lastHandledReconcileAt") == "now"

    await until(is_handled)


async def child_of(operated: Place, uid: str) -> Object:
    """A Service of a LogPipeline `web` with this uid, which is not there."""
    owner = {"apiVersion": "logweir.dev/v1alpha1", "kind": "LogPipeline", "name": "web"}
    return await operated.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": "web-ingest",
                "labels": {
                    "app.kubernetes.io/managed-by": "logweir-operator",
                    "logweir.dev/pipeline": "web",
                },
                "ownerReferences": [{**owner, "uid": uid, "controller": True}],
            },
            "spec": {"ports": [{"name": "http", "port": 80}]},
        }
    )


async def test_a_child_of_an_earlier_one_of_the_name_is_replaced(operated_bare: Place):
    """The cluster's garbage collector, which does so too, may be away for minutes."""
    operated = operated_bare
    await child_of(operated, "earlier")
    await asyncio.sleep(1.1)  # times of creation are whole seconds
    await operated.apply_tenant()
    await operated.apply_pipeline()
    await operated.start()
    uid = (await operated.get("LogPipeline", "web"))["metadata"]["uid"]

    async def is_ours() -> bool:
        found = await operated.find("Service", "web-ingest")
        return found is not None and found["metadata"]["ownerReferences"][0]["uid"] == uid

    await until(is_ours)


async def test_a_child_of_a_later_one_of_the_name_is_never_touched(operated_bare: Place):
    """Of which another operator knows already."""
    operated = operated_bare
    await operated.apply_tenant()
    await operated.apply_pipeline()
    await asyncio.sleep(1.1)
    before = await child_of(operated, "later")
    await operated.start()

    async def waits() -> bool:
        return "still goes" in (await operated.condition("LogPipeline", "web")).get("message", "")

    await until(waits)
    assert await operated.get("Service", "web-ingest") == before
