"""Logins of PostgreSQL and users of Redis through a rotation; every step may run again.

provision.open_logins        the new logins are good (and the old ones still)
provision.set_users          Redis users have the passwords of now, and those of before
close_logins                 logins are locked out, and what they do ends
end_old_connections          connections of Redis users from before a rotation end
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg import sql
from redis import asyncio as redis

from logweir.backends import journal
from logweir.backends.control import Tenant
from logweir.core import names
from logweir.core.names import LoginKind, TenantId

END_WAIT_MS: Final = 1000
"""How long the end of a session is waited for."""


def idle_logins(tenant: Tenant) -> list[str]:
    """Return the logins of the slots that a row does not name."""
    used: dict[LoginKind, str] = {
        "w": tenant.writer_slot,
        "r": tenant.reader_slot,
        "k": tenant.keeper_slot,
    }
    return [
        names.login(tenant.id, kind, "a" if slot == "b" else "b") for kind, slot in used.items()
    ]


def close_logins(connection: psycopg.Connection[Any], logins: Sequence[str]) -> int:
    """Lock logins out, end their sessions, and return how many of these are left; those that do
    not exist are left out.

    Args:
        connection: of the operator, in autocommit.
        logins: their names.
    """
    # Those that are closed already, too: a run that was cut off may have left them its privileges.
    rows = connection.execute(
        "select rolname from pg_roles where rolname = any(%s)", [list(logins)]
    ).fetchall()
    found = [str(row[0]) for row in rows]
    # Only who has a role's privileges may end its sessions.
    how = " with inherit true" if connection.info.server_version >= 160000 else ""
    for login in map(sql.Identifier, found):
        connection.execute(sql.SQL("alter role {} nologin").format(login))
        connection.execute(sql.SQL("grant {} to current_user" + how).format(login))
    connection.execute(
        "select pg_terminate_backend(pid, %s) from pg_stat_activity where usename = any(%s)",
        [END_WAIT_MS, found],
    )
    for login in map(sql.Identifier, found):
        connection.execute(sql.SQL("revoke {} from current_user").format(login))
    left = connection.execute(
        "select count(*) from pg_stat_activity where usename = any(%s)", [list(logins)]
    ).fetchone()
    return int(left[0]) if left else 0


async def end_old_connections(operator: redis.Redis, tenant: TenantId, since_s: float) -> None:
    """End connections of a tenant's Redis users that were opened before a moment.

    A changed password ends no connection by itself, and nothing tells which password a connection
    came with; what is older than the new password came with the old one.

    Args:
        operator: a client with the operator's login.
        tenant: whose users.
        since_s: seconds since the epoch.
    """
    users = {names.redis_user(tenant, kind) for kind in ("in", "col", "tail")}
    limit_s = time.time() - since_s
    for one in await journal.answer_of(operator.client_list()):
        if one.get("user") in users and float(one["age"]) > limit_s + 1:
            await journal.command(operator, "CLIENT", "KILL", "ID", one["id"])
