"""The live tail over a real WebSocket, fed by real appends."""

from __future__ import annotations

import json
import time

import websockets
from builders import encode, records, request
from logweir.core import keys


async def append(tenant, messages: list[str]) -> bytes:
    of = [record | {"message": text} for record, text in zip(records(len(messages)), messages)]
    one, part = request(of)
    import world

    uuid = world.new_uuid()
    await tenant.appender().append(
        tenant.pipeline,
        uuid,
        encode(tenant.id, tenant.pipeline, [(one, part)], uuid=uuid),
        accepted=one.accepted,
        size_bytes=one.size_bytes,
        requests=1,
        keyed=[],
    )
    return uuid


async def test_a_tail_shows_history_then_live_records_once(role, tenant, query_key):
    await tenant.store_records(records(3))
    await append(tenant, ["buffered"])
    url = role.url.replace("http", "ws") + "/api/v1/tail?query={}"
    async with websockets.connect(
        url, additional_headers={"authorization": f"Bearer {query_key}"}
    ) as socket:
        history = json.loads(await socket.recv())
        live = json.loads(await socket.recv())
        await append(tenant, ["live 1"])
        frame = json.loads(await socket.recv())

    assert sorted(one["message"] for one in history["records"]) == [
        "buffered",
        "message 0",
        "message 1",
        "message 2",
    ]
    assert live == {"live": True}
    assert [one["message"] for one in frame["records"]] == ["live 1"]
