"""A Redis user that tries what it should not, and what another tenant has to lose by it."""

from __future__ import annotations

from typing import Any

import world
from redis import exceptions

from logweir.backends import journal, redis_client
from logweir.core import names
from logweir.core.binding import Login

KINDS = ("in", "col", "tail")


class User:
    """A connection of a Redis user, on which any command can be tried."""

    def __init__(self, server, login: Login) -> None:
        self._client = redis_client.client(server, login, connections=1)

    async def tries(self, *words: object) -> Any:
        """What the server answers; an error is returned, not raised."""
        pool = self._client.connection_pool
        connection = await pool.get_connection()
        try:
            await connection.send_command(*words)
            return await connection.read_response()
        except exceptions.ResponseError as error:
            return error
        finally:
            await pool.release(connection)

    async def renew(self) -> None:
        """Use a new connection from now on."""
        await self._client.connection_pool.disconnect()

    async def close(self) -> None:
        await self._client.aclose()


def key(tenant, name: str) -> str:
    return names.journal_pipeline(tenant.id, tenant.pipeline) + name


def tenant_key(tenant, name: str) -> str:
    return names.journal_tenant(tenant.id) + name


async def append(
    tenant, door, payload: bytes = b"secret"
) -> journal.Appended | journal.AllRepeated | journal.Conflicts:
    """Append a block that has something to steal."""
    return await door.append(
        tenant.pipeline,
        world.new_uuid(),
        payload,
        accepted=1,
        size_bytes=len(payload),
        requests=1,
        keyed=[journal.KeyedRequest(0, b"k" * 16, 1)],
    )


def is_denied(answer: object) -> bool:
    return isinstance(answer, exceptions.NoPermissionError)


async def contents(tenant) -> dict[str, bytes]:
    """All keys of a tenant, byte for byte."""
    found = await tenant.redis.keys(tenant_key(tenant, "*").replace("{", "[{]"))
    return {name.decode(): await tenant.redis.dump(name) for name in sorted(found)}


async def rules(tenant) -> tuple:
    """What an intruder would change of the server: users, functions, settings."""
    return (
        await journal.command(tenant.redis, "ACL", "LIST"),
        await tenant.redis.function_list(),
        await tenant.redis.config_get("maxmemory*", "append*"),
    )
