"""The operator on a real API server, over real databases."""

from __future__ import annotations

from operating import Place, until


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
