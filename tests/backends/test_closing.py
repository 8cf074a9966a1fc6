"""What PostgreSQL gives to everybody is taken away, and the platform goes on with what it needs."""

from __future__ import annotations

import psycopg
import pytest
import world
from psycopg import sql

from logweir.backends import closing, provision, store
from logweir.core import names
from logweir.core.binding import Login

PLATFORM = (provision.OPERATOR, provision.KEEPER, provision.AUTH)


def defaults(server) -> tuple:
    """All rights on functions, databases and memberships, as the catalog has them."""
    with psycopg.connect(server.url(database=provision.DATABASE)) as connection:
        return tuple(
            connection.execute(query).fetchall()
            for query in (
                "select oid::regprocedure::text, proacl::text from pg_proc"
                " where pronamespace = 'pg_catalog'::regnamespace order by 1",
                "select datname, datacl::text from pg_database order by 1",
                "select roleid::regrole::text, member::regrole::text from pg_auth_members"
                " order by 1, 2",
            )
        )


@pytest.fixture
def strangers(spare_postgres):
    """The connection string of a login that is nobody's, for a database."""
    with psycopg.connect(spare_postgres.url(), autocommit=True) as connection:
        connection.execute("create role stranger login password 'x'")
        yield lambda database: spare_postgres.url("stranger", "x", database)
        connection.execute("drop role stranger")


def test_closing_again_changes_nothing(spare_postgres, roots):
    closing.close_other_databases(spare_postgres.url(), provision.DATABASE)
    before = defaults(spare_postgres)
    provision.bootstrap_store(spare_postgres.url(), roots)
    provision.upgrade_control(world.operator_conninfo(spare_postgres, roots))
    closing.close_other_databases(spare_postgres.url(), provision.DATABASE)

    assert defaults(spare_postgres) == before


def test_a_stranger_s_login_cannot_connect_to_any_database_of_the_server(spare_postgres, strangers):
    closing.close_other_databases(spare_postgres.url(), provision.DATABASE)

    for database in (provision.DATABASE, "postgres", "template1"):
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(strangers(database))


async def test_a_tenant_s_login_cannot_connect_to_another_database(spare_postgres, make_tenant):
    closing.close_other_databases(spare_postgres.url(), provision.DATABASE)
    tenant = await make_tenant(store=spare_postgres)

    for kind in ("w", "r", "k"):
        for database in ("postgres", "template1"):
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                psycopg.connect(tenant.conninfo(kind), dbname=database)


async def test_tenants_of_before_are_not_locked_out(spare_postgres, make_tenant, roots):
    tenant = await make_tenant(store=spare_postgres)
    with psycopg.connect(spare_postgres.url(), autocommit=True) as connection:
        connection.execute("grant connect on database logweir to public")
        for kind in ("w", "r", "k"):
            login = sql.Identifier(tenant.store_login(kind).user)
            connection.execute(sql.SQL("revoke logweir_tenants from {}").format(login))
        owner = sql.Identifier(names.owner(tenant.id))
        connection.execute(sql.SQL("revoke logweir_owners from {}").format(owner))
    provision.upgrade_control(world.operator_conninfo(spare_postgres, roots))

    for kind in ("w", "r", "k"):
        psycopg.connect(tenant.conninfo(kind)).close()
    with psycopg.connect(spare_postgres.url()) as connection:
        query = "select pg_has_role(%s, 'logweir_owners', 'usage')"
        assert connection.execute(query, [names.owner(tenant.id)]).fetchall() == [(True,)]


@pytest.mark.parametrize("login", PLATFORM)
def test_the_platform_sees_what_moves_and_takes_its_locks(postgres, roots, login):
    who = Login(login, provision.platform_password(roots, login))
    with psycopg.connect(store.conninfo(world.store_server(postgres), who, "test")) as connection:
        connection.execute("select pg_advisory_lock(1), pg_advisory_unlock(1)")
        connection.execute("select usename from pg_stat_activity")
        connection.execute("select n_tup_ins from pg_stat_all_tables")


def test_who_watches_the_server_goes_on(postgres):
    with psycopg.connect(postgres.url(database=provision.DATABASE)) as connection:
        connection.execute("create role watcher in role pg_monitor")
        connection.execute("set role watcher")
        connection.execute("select count(*) from pg_stat_activity, pg_locks")
        connection.rollback()


def test_who_is_no_superuser_is_warned_and_nothing_fails(spare_postgres, roots):
    """As on a managed server, where pg_catalog belongs to somebody else."""
    opened = "lo_create(oid), pg_advisory_lock(bigint)"
    with psycopg.connect(
        spare_postgres.url(database=provision.DATABASE), autocommit=True
    ) as connection:
        connection.execute(f"grant execute on function {opened} to public")
        before = defaults(spare_postgres)
        operator = world.operator_conninfo(spare_postgres, roots)
        closing.close_functions(operator, provision.DATABASE, PLATFORM)

        assert defaults(spare_postgres) == before
        connection.execute(f"revoke execute on function {opened} from public")
