"""The key API as a test asks it."""

from __future__ import annotations

from typing import Any

import httpx2


async def create(client: httpx2.AsyncClient, name: str = "web", **fields: Any) -> httpx2.Response:
    return await client.post("/api/v1/keys", json={"name": name, "scopes": ["ingest"]} | fields)


async def made(client: httpx2.AsyncClient, name: str = "web", **fields: Any) -> dict[str, Any]:
    answer = await create(client, name, **fields)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def listed(client: httpx2.AsyncClient) -> list[dict[str, Any]]:
    return (await client.get("/api/v1/keys")).json()["keys"]
