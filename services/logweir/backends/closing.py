"""Takes from everybody what PostgreSQL gives to everybody; docs/isolation.md says what is left.

close_functions         large objects, advisory locks, SQL in XML, statistics of others, pg_notify
close_database          the platform's database is for the platform's logins and tenants' only
close_other_databases   the others of a server that is Logweir's own are for its superuser only

Each may run again, and changes nothing when all is closed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg import sql

TENANTS: Final = "logweir_tenants"
"""All logins of tenants are members, and may connect by it. It has no other right."""

OWNERS: Final = "logweir_owners"
"""The owners of tenants' schemas, none of which can log in: before a partition is dropped, a
function of theirs looks for queries that still want it."""

_MEMBERS: Final[Mapping[str, str]] = {TENANTS: "^t_.+_[wrk]_[ab]$", OWNERS: "^t_.+_owner$"}

_CLOSED: Final = (
    r"^(lo_.+|loread|lowrite|pg_(try_)?advisory_.+|pg_notify|pg_stat_get_.+|pg_lock_status"
    r"|.+_to_xml(schema)?|.+_to_xml_and_xmlschema)$"
)
_PLATFORM: Final = r"^(pg_advisory_.+|pg_stat_get_.+|pg_lock_status)$"
"""Migrations and keys are made under advisory locks, sessions are ended, the keeper sees what
moves."""

_OPEN: Final[Mapping[str, str]] = {"pg_monitor": _PLATFORM, OWNERS: "^pg_stat_get_activity$"}


def close_functions(superuser: str, database: str, platform: Sequence[str]) -> None:
    """Let nobody but the platform's logins run what shows or disturbs other tenants.

    Where the login is no real superuser (a managed server), PostgreSQL refuses this with a warning
    and all stays as it was.

    Args:
        superuser: connection string of a superuser.
        database: the platform's.
        platform: logins that go on with what they need of it; the first, the operator's, makes
            members of the roles.
    """
    with psycopg.connect(superuser, dbname=database) as connection:
        for role in _MEMBERS:
            _ensure_role(connection, role, platform[0])
        rows = connection.execute(
            "select p.oid::regprocedure::text from pg_proc p,"
            " aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a"
            " where p.pronamespace = 'pg_catalog'::regnamespace and p.proname ~ %s"
            " and a.grantee = 0",
            [_CLOSED],
        ).fetchall()
        if rows:
            names = ", ".join(name for (name,) in rows)  # the catalog's, quoted by it
            connection.execute(sql.SQL(f"revoke execute on function {names} from public"))
        for role, pattern in {**dict.fromkeys(platform, _PLATFORM), **_OPEN}.items():
            _open(connection, role, pattern)


def _open(connection: psycopg.Connection[Any], role: str, pattern: str) -> None:
    """Let a role run the functions that it cannot run yet."""
    rows = connection.execute(
        "select oid::regprocedure::text from pg_proc"
        " where pronamespace = 'pg_catalog'::regnamespace and proname ~ %s"
        " and not has_function_privilege(%s, oid, 'execute')",
        [pattern, role],
    ).fetchall()
    if rows:
        names = ", ".join(name for (name,) in rows)
        connection.execute(
            sql.SQL(f"grant execute on function {names} to {{}}").format(sql.Identifier(role))
        )


def close_database(operator: str, database: str, platform: Sequence[str]) -> None:
    """Let nobody connect to the platform's database but its logins and `TENANTS`.

    Args:
        operator: connection string of the database's owner.
        database: the platform's.
        platform: its other logins.
    """
    with psycopg.connect(operator, autocommit=True) as connection:
        name = sql.Identifier(database)
        who = sql.SQL(", ").join(map(sql.Identifier, [*platform, TENANTS]))
        connection.execute(sql.SQL("grant connect on database {} to {}").format(name, who))
        for role, pattern in _MEMBERS.items():
            for (member,) in _outside(connection, role, pattern):
                admit(connection, member, role)
        connection.execute(sql.SQL("revoke all on database {} from public").format(name))


def admit(connection: psycopg.Connection[Any], member: str, role: str) -> None:
    """Make a role of a tenant a member of `TENANTS` or `OWNERS`."""
    is_new = connection.info.server_version >= 160000
    how = " with inherit true, set false" if is_new else ""
    connection.execute(
        sql.SQL("grant {} to {}" + how).format(sql.Identifier(role), sql.Identifier(member))
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


def _ensure_role(connection: psycopg.Connection[Any], role: str, admin: str) -> None:
    exists = connection.execute("select 1 from pg_roles where rolname = %s", [role]).fetchone()
    if not exists:
        connection.execute(
            sql.SQL("create role {} nologin admin {}").format(
                sql.Identifier(role), sql.Identifier(admin)
            )
        )


def _outside(connection: psycopg.Connection[Any], role: str, pattern: str) -> list[tuple[str]]:
    """Roles of tenants that are no members yet, as of before there was the role: they must not be
    shut out until their next reconcile."""
    return connection.execute(
        "select rolname from pg_roles r where rolname ~ %s"
        " and not exists (select from pg_auth_members m where m.member = r.oid"
        " and m.roleid = %s::regrole)",
        [pattern, role],
    ).fetchall()
