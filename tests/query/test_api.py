"""The read API over HTTP, against real servers."""

from __future__ import annotations

from builders import record, records


async def test_a_query_answers_records_newest_first_with_their_pipeline(client, tenant):
    await tenant.store_records(
        [record("old", timestamp="2026-01-01T00:00:00Z"), record("new", host="h1")]
    )

    answer = await client.get("/api/v1/query", params={"query": "{}", "start": "-3650d"})

    found = answer.json()
    assert answer.status_code == 200
    assert [one["message"] for one in found["records"]] == ["new", "old"][:1]
    assert found["records"][0]["labels"] == {
        "host": "h1",
        "level": "info",
        "pipeline": "default",
        "service": "shop",
    }
    assert found["stopped"] is None
    assert found["cursor"] is None


async def test_labels_and_their_values_are_counted(client, tenant):
    await tenant.store_records([*records(3), record("x", service="cart", level="error")])

    names = (await client.get("/api/v1/labels")).json()
    values = (await client.get("/api/v1/labels/service/values")).json()

    assert names["labels"] == ["level", "pipeline", "service"]
    assert values["values"] == [{"value": "shop", "count": 3}, {"value": "cart", "count": 1}]
