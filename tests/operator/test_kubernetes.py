"""The operator on a real API server, over real databases."""

from __future__ import annotations

import asyncio

from operating import Place, until

from logweir_operator import scaler


async def test_a_tenant_and_a_pipeline_become_ready_with_their_children(operated: Place):
    await operated.start()
    await operated.apply_tenant()
    await operated.apply_pipeline()
    await operated.ready("LogTenant", "acme")
    await operated.ready("LogPipeline", "web")

    async def made() -> bool:
        return await operated.find("Deployment", "web-collector") is not None

    await until(made)
    names = {one["metadata"]["name"] for one in await operated.list("Secret")}
    assert {"acme-key-in", "acme-key-out", "web-ingest-binding", "web-collector-binding"} <= names
    await operated.stop()


async def running(operated: Place, **spec: object) -> None:
    """A tenant with a pipeline, both ready."""
    await operated.start()
    await operated.apply_tenant(**spec)
    await operated.apply_pipeline()
    await operated.ready("LogTenant", "acme")
    await operated.ready("LogPipeline", "web")
    await until(lambda: operated.find("Deployment", "web-collector"))
    await until(lambda: operated.find("Service", "web-ingest"))


async def gone(operated: Place, kind: str, name: str) -> bool:
    return await operated.find(kind, name) is None


async def test_a_deleted_child_comes_back(operated: Place):
    await running(operated)
    before = await operated.get("Service", "web-ingest")
    await operated.delete("Service", "web-ingest")

    async def is_back() -> bool:
        found = await operated.find("Service", "web-ingest")
        return found is not None and found["metadata"]["uid"] != before["metadata"]["uid"]

    await until(is_back, 5)


async def test_an_edited_child_is_put_right_and_what_others_add_stays(operated: Place):
    await running(operated)
    await operated.patch(
        "Service",
        "web-ingest",
        {"metadata": {"annotations": {"mine": "kept"}}, "spec": {"selector": {"a": "b"}}},
    )
    await operated.patch(
        "Deployment", "web-ingest", {"metadata": {"labels": {"logweir.dev/pipeline": "other"}}}
    )

    async def is_right() -> bool:
        deployment = await operated.get("Deployment", "web-ingest")
        return deployment["metadata"]["labels"]["logweir.dev/pipeline"] == "web"

    await until(is_right, 5)
    service = await operated.get("Service", "web-ingest")
    assert service["metadata"]["annotations"]["mine"] == "kept"


async def test_a_child_without_our_label_and_reference_is_put_right(operated: Place):
    await running(operated)
    await operated.patch("Service", "web-ingest", {"metadata": {"ownerReferences": None}})

    async def is_right() -> bool:
        found = await operated.get("Service", "web-ingest")
        return bool(found["metadata"].get("ownerReferences"))

    await until(is_right, 5)


async def test_an_object_of_somebody_else_is_never_touched_but_named(operated: Place):
    foreign = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web-ingest", "labels": {"owner": "me"}},
        "spec": {"ports": [{"name": "own", "port": 1234}], "selector": {"mine": "yes"}},
    }
    await operated.apply(foreign)
    before = await operated.get("Service", "web-ingest")
    await operated.start()
    await operated.apply_tenant()
    await operated.apply_pipeline()

    async def is_named() -> bool:
        one = await operated.condition("LogPipeline", "web", "Stalled")
        return one.get("status") == "True" and one["reason"] == "ForeignObject"

    await until(is_named)
    message = (await operated.condition("LogPipeline", "web", "Stalled"))["message"]
    assert "Service web-ingest is there already" in message
    assert await operated.get("Service", "web-ingest") == before

    await operated.patch(
        "Service", "web-ingest", {"metadata": {"annotations": {"logweir.dev/adopt": "true"}}}
    )
    await operated.patch(
        "LogPipeline", "web", {"metadata": {"annotations": {"logweir.dev/reconcile-at": "1"}}}
    )
    await operated.ready("LogPipeline", "web")
    adopted = await operated.get("Service", "web-ingest")
    assert adopted["metadata"]["ownerReferences"][0]["name"] == "web"


async def test_a_suspended_pipeline_is_left_as_it_is(operated: Place):
    await running(operated)
    await operated.apply_pipeline(suspend=True)

    async def is_suspended() -> bool:
        found = await operated.get("LogPipeline", "web")
        one = await operated.condition("LogPipeline", "web")
        return (
            one.get("reason") == "Suspended"
            and found["status"]["observedGeneration"] == found["metadata"]["generation"]
        )

    await until(is_suspended)
    await operated.delete("Service", "web-ingest")
    await operated.apply_tenant("other", apiKeys=[])
    await operated.ready("LogTenant", "other")  # so a pass after the deletion has been made
    assert await gone(operated, "Service", "web-ingest")
    await operated.apply_pipeline(suspend=False)
    await until(lambda: operated.find("Service", "web-ingest"))


async def test_deleted_resources_go_with_what_they_have_and_a_tenant_waits_for_its_pipelines(
    operated: Place,
):
    await running(operated, deletionPolicy="Delete")
    rows = await operated.control.tenants()
    [row] = [one for one in rows if one.cluster == operated.config.cluster]
    await operated.delete("LogTenant", "acme")

    async def waits() -> bool:
        return "pipelines: web" in (await operated.condition("LogTenant", "acme")).get(
            "message", ""
        )

    await until(waits)
    await operated.delete("LogPipeline", "web")
    await until(lambda: gone(operated, "LogPipeline", "web"))
    await until(lambda: gone(operated, "LogTenant", "acme"), 30)
    assert row.id not in {one.id for one in await operated.control.tenants()}


async def test_a_resource_that_is_deleted_while_nobody_looks_goes_when_somebody_does(
    operated: Place,
):
    await running(operated)
    await operated.stop()
    await operated.delete("LogPipeline", "web")
    assert (await operated.get("LogPipeline", "web"))["metadata"]["deletionTimestamp"]
    await operated.start()
    await until(lambda: gone(operated, "LogPipeline", "web"))


async def test_a_restart_over_objects_that_are_right_writes_nothing(operated: Place):
    await running(operated)
    await operated.stop()
    before = {
        one["metadata"]["name"]: one["metadata"]["resourceVersion"]
        for kind in ("Deployment", "Service", "Secret", "LogTenant", "LogPipeline")
        for one in await operated.list(kind)
    }
    await operated.start()
    await operated.apply_tenant("late", apiKeys=[])
    await operated.ready("LogTenant", "late")
    after = {
        one["metadata"]["name"]: one["metadata"]["resourceVersion"]
        for kind in ("Deployment", "Service", "Secret", "LogTenant", "LogPipeline")
        for one in await operated.list(kind)
        if not one["metadata"]["name"].startswith("late")
    }
    assert after == before


async def test_of_two_operators_one_works_and_the_other_takes_over(operated: Place):
    first = await operated.start()
    await operated.apply_tenant()
    await operated.ready("LogTenant", "acme")
    second = await operated.start()
    await until(lambda: _waits(second))
    await operated.stop(first)
    await operated.apply_pipeline()
    await operated.ready("LogPipeline", "web")


async def _waits(life: object) -> bool:
    return "another operator" in life.problems().get("lease", "")  # type: ignore[attr-defined]


async def test_a_pipeline_whose_tenant_is_not_there_says_so_and_is_made_when_it_comes(
    operated: Place,
):
    await operated.start()
    await operated.apply_pipeline()

    async def is_missing() -> bool:
        return (await operated.condition("LogPipeline", "web")).get("reason") == "TenantNotFound"

    await until(is_missing)
    await operated.apply_tenant()
    await operated.ready("LogPipeline", "web")


async def test_a_deletion_that_cannot_be_done_can_be_abandoned(operated: Place):
    await running(operated)
    await operated.kill()
    await operated.delete("LogTenant", "acme")
    await operated.delete("LogPipeline", "web")
    operated.break_databases()
    await operated.start()
    for kind, name in (("LogTenant", "acme"), ("LogPipeline", "web")):
        await operated.patch(
            kind, name, {"metadata": {"annotations": {"logweir.dev/abandon-external": "true"}}}
        )
        await until(lambda kind=kind, name=name: gone(operated, kind, name))


async def events_of(operated: Place, name: str) -> list[dict[str, object]]:
    return [one for one in await operated.list("Event") if one["involvedObject"]["name"] == name]


async def reasons_of(operated: Place, name: str) -> list[str]:
    return [str(one["reason"]) for one in await events_of(operated, name)]


async def test_a_status_tells_ids_keys_pods_and_lag(operated: Place):
    await running(operated)
    tenant = (await operated.get("LogTenant", "acme"))["status"]

    async def is_scaled() -> dict[str, object] | None:
        found = (await operated.get("LogPipeline", "web"))["status"]
        return found if "lag" in found and found["ingest"]["readyReplicas"] == 2 else None

    pipeline = await until(is_scaled)
    assert tenant["pipelines"] == 1
    assert {"name": "in", "secretName": "acme-key-in"} in tenant["apiKeys"]
    assert tenant["credentials"]["phase"] == "steady"
    assert pipeline["url"].endswith(f"/t/{tenant['tenantId']}/web")
    assert pipeline["pipelineId"] > 0
    assert pipeline["ingest"]["ready"] == "2/2"
    assert pipeline["lag"]["backlogBytes"] == 0
    assert pipeline["lag"]["drain"] == "empty"
    assert pipeline["collector"]["selector"].endswith("app.kubernetes.io/instance=web")
    assert (await operated.condition("LogPipeline", "web", "Fresh"))["reason"] == "WithinGoal"


async def test_a_resource_at_rest_costs_no_writes(operated: Place):
    await running(operated)
    await until(lambda: _is_settled(operated))
    before = (await operated.get("LogPipeline", "web"))["metadata"]["resourceVersion"]
    await operated.apply_tenant("late", apiKeys=[])
    await operated.ready("LogTenant", "late")
    await asyncio.sleep(scaler.LOOK_S * 2)  # what is looked for is that nothing happens
    after = (await operated.get("LogPipeline", "web"))["metadata"]["resourceVersion"]
    assert after == before


async def _is_settled(operated: Place) -> bool:
    found = (await operated.get("LogPipeline", "web"))["status"]
    return "lag" in found and found["ingest"]["readyReplicas"] == 2


async def test_events_tell_of_what_has_changed_once(operated: Place):
    await running(operated)

    async def are_told() -> bool:
        return "Provisioned" in await reasons_of(
            operated, "web"
        ) and "Provisioned" in await reasons_of(operated, "acme")

    await until(are_told)
    await operated.patch("Service", "web-ingest", {"spec": {"type": "NodePort"}})

    async def is_corrected() -> list[dict[str, object]]:
        return [
            one for one in await events_of(operated, "web") if one["reason"] == "DriftCorrected"
        ]

    [event] = await until(is_corrected)
    assert "Service/web-ingest.spec.type" in str(event["message"])
    assert (await operated.get("Service", "web-ingest"))["spec"]["type"] == "ClusterIP"
    assert (await reasons_of(operated, "web")).count("Provisioned") == 1


async def test_a_spec_that_cannot_be_carried_out_says_why_and_holds_up_no_other(operated: Place):
    await running(operated)
    await operated.apply_tenant("bad", tenantId="acme", apiKeys=[])
    await operated.apply_tenant("twin", tenantId="acme", apiKeys=[])
    await operated.apply_tenant("good", apiKeys=[])
    await operated.ready("LogTenant", "good")

    async def stalled() -> list[str]:
        found = [await operated.condition("LogTenant", one, "Stalled") for one in ("bad", "twin")]
        return [one["reason"] for one in found if one.get("status") == "True"]

    assert await until(stalled) == ["IdentityClaimed"]


async def test_databases_that_do_not_answer_are_named_on_the_object(operated: Place):
    operated.break_databases()
    await operated.start()
    await operated.apply_tenant()

    async def is_named() -> bool:
        one = await operated.condition("LogTenant", "acme", "DatabaseReady")
        return one.get("reason") == "DatabaseUnreachable"

    await until(is_named)
    assert (await operated.condition("LogTenant", "acme"))["reason"] == "Retrying"
