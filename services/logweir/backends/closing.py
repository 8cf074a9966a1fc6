"""Takes from everybody what PostgreSQL gives to everybody; docs/isolation.md says what is left.

close_functions         large objects, advisory locks, SQL in XML, statistics of others, pg_notify
close_database          the platform's database is for the platform's logins and tenants' only
close_other_databases   the others of a server that is Logweir's own are for its superuser only

Each may run again, and changes nothing when all is closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg import sql

TENANTS: Final = "logweir_tenants"
"""All logins of tenants are members, and may connect by it. It has no other right."""

_CLOSED: Final = (
    r"^(lo_.+|loread|lowrite|pg_(try_)?advisory_.+|pg_notify|pg_stat_get_.+|pg_lock_status"
    r"|.+_to_xml(schema)?|.+_to_xml_and_xmlschema)$"
)
_PLATFORM_ONLY: Final = r"^(pg_advisory_.+|pg_stat_get_.+|pg_lock_status)$"
"""The operator migrates under an advisory lock and ends sessions, the keeper sees what moves, and
who watches the server (pg_monitor) goes on."""


def close_functions(superuser: str, database: str, platform: Sequence[str]) -> None:
    """Let nobody but the platform's logins run what shows or disturbs other tenants.

    Where the login is no real superuser (a managed server), PostgreSQL refuses this with a warning
    and all stays as it was.

    Args:
        superuser: connection string of a superuser.
        database: the platform's.
        platform: logins that go on with what they need of it.
    """
    with psycopg.connect(superuser, dbname=database, autocommit=True) as connection:
        found = connection.execute(
            "select p.oid::regprocedure::text, p.proname ~ %s from pg_proc p,"
            " aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a"
            " where p.pronamespace = 'pg_catalog'::regnamespace and p.proname ~ %s"
            " and a.grantee = 0 order by 1",
            [_PLATFORM_ONLY, _CLOSED],
        ).fetchall()
        # The names come from the catalog, quoted by it.
        needed = ", ".join(name for name, is_needed in found if is_needed)
        if needed:
            who = sql.SQL(", ").join(map(sql.Identifier, [*platform, "pg_monitor"]))
            connection.execute(sql.SQL(f"grant execute on function {needed} to {{}}").format(who))
        if found:
            names = ", ".join(name for name, _ in found)
            connection.execute(sql.SQL(f"revoke execute on function {names} from public"))


def close_database(operator: str, database: str, platform: Sequence[str]) -> None:
    """Let nobody connect to the platform's database but its logins and `TENANTS`.

    Args:
        operator: connection string of the database's owner.
        database: the platform's.
        platform: its other logins.
    """
    with psycopg.connect(operator, autocommit=True) as connection:
        _ensure_tenants(connection)
        name = sql.Identifier(database)
        who = sql.SQL(", ").join(map(sql.Identifier, [*platform, TENANTS]))
        connection.execute(sql.SQL("grant connect on database {} to {}").format(name, who))
        for (login,) in _logins_outside(connection):
            admit(connection, login)
        connection.execute(sql.SQL("revoke all on database {} from public").format(name))


def admit(connection: psycopg.Connection[Any], login: str) -> None:
    """Make a tenant's login a member of `TENANTS`."""
    is_new = connection.info.server_version >= 160000
    how = " with inherit true, set false" if is_new else ""
    connection.execute(
        sql.SQL("grant {} to {}" + how).format(sql.Identifier(TENANTS), sql.Identifier(login))
    )


def close_other_databases(superuser: str, database: str) -> None:
    """Let nobody but the superuser connect to any database of this server but the platform's."""
    with psycopg.connect(superuser, autocommit=True) as connection:
        others = connection.execute(
            "select datname from pg_database where datname <> %s order by 1", [database]
        ).fetchall()
        for (name,) in others:
            connection.execute(
                sql.SQL("revoke connect, temporary on database {} from public").format(
                    sql.Identifier(name)
                )
            )


def _ensure_tenants(connection: psycopg.Connection[Any]) -> None:
    exists = connection.execute("select 1 from pg_roles where rolname = %s", [TENANTS]).fetchone()
    if not exists:
        connection.execute(sql.SQL("create role {} nologin").format(sql.Identifier(TENANTS)))


def _logins_outside(connection: psycopg.Connection[Any]) -> list[tuple[str]]:
    """Tenants' logins of before there was the role: they must not be locked out until their next
    reconcile."""
    return connection.execute(
        r"select rolname from pg_roles r where rolcanlogin and rolname ~ '^t_.+_[wrk]_[ab]$'"
        " and not exists (select from pg_auth_members m where m.member = r.oid"
        " and m.roleid = %s::regrole)",
        [TENANTS],
    ).fetchall()
