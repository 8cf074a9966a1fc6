"""PostgreSQL and Redis go away while an operator runs, and come back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from operating import Place, until

from logweir.backends import redis_client
from logweir.core import names


async def reason(operated: Place, condition: str, name: str = "acme") -> str:
    found: str = (await operated.condition("LogTenant", name, condition)).get("reason", "")
    return found


async def stop(server: object) -> None:
    await asyncio.to_thread(server.stop)  # type: ignore[attr-defined]


async def start(server: object, log: Path) -> None:
    await asyncio.to_thread(server.start, log)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "condition", "unreachable"),
    [
        ("postgres", "DatabaseReady", "DatabaseUnreachable"),
        ("valkey", "RedisReady", "RedisUnreachable"),
    ],
)
async def test_a_server_that_is_away_is_named_and_all_goes_on_when_it_is_back(
    operated_alone: Place, tmp_path: Path, kind: str, condition: str, unreachable: str
):
    operated, server = operated_alone, getattr(operated_alone, kind)
    await operated.start()
    await operated.apply_tenant()
    await operated.apply_pipeline()
    await operated.ready("LogPipeline", "web")
    await stop(server)
    await operated.apply_tenant("late", apiKeys=[])
    await operated.apply_pipeline("of-late", "late")

    async def is_named() -> bool:
        return await reason(operated, condition, "late") == unreachable

    await until(is_named, 30, lambda: operated.find("LogTenant", "late"))
    # What runs goes on running: nothing of it depends on the operator.
    assert await operated.find("Deployment", "web-ingest") is not None
    await start(server, tmp_path / "again.log")
    await operated.ready("LogTenant", "late", 60)
    await operated.ready("LogPipeline", "of-late", 60)
    await operated.ready("LogTenant", "acme", 60)
    assert await reason(operated, condition) == "Provisioned"
    await operated.stop()


async def test_users_that_redis_has_lost_are_made_again(operated_alone: Place):
    """As after a restart of one that keeps no ACL file."""
    operated = operated_alone
    await operated.start()
    await operated.apply_tenant()
    await operated.apply_pipeline()
    await operated.ready("LogPipeline", "web")
    [row] = await operated.control.tenants()
    servers = operated.config.servers()
    journal = redis_client.client(servers.journal, servers.journal_login)
    user = names.redis_user(row.id, "in")
    try:
        assert user in await journal.acl_users()
        await journal.acl_deluser(user)

        async def is_back() -> bool:
            return user in await journal.acl_users()

        await until(is_back, 60)
    finally:
        await journal.aclose()
    await operated.stop()
