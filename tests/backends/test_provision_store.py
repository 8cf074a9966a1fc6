"""A tenant's place in PostgreSQL: made from any half-done state, and closed to all others."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
import world
from psycopg import errors as pg_errors
from sqlalchemy.exc import DBAPIError

from logweir.backends import control, provision, store
from logweir.core import errors, names
from logweir.core.binding import Login
from logweir.core.names import TenantId
from logweir.standalone import accounts, servers
from logweir.standalone.postgres import Postgres

LIMITS = provision.Limits(buffer_bytes=1 << 30)

_numbers = itertools.count(1)


def tenant_row(name: str = "", **fields: Any) -> control.Tenant:
    """A row of `tenants`; provisioning needs no more of the control schema."""
    name = name or f"made-{next(_numbers)}"
    revisions = dict.fromkeys(
        ("writer", "reader", "keeper", "redis", "ingest", "access"),
        1,
    )
    row = control.Tenant(
        id=TenantId(name),
        cluster="test",
        namespace="default",
        name=name,
        state="active",
        spec={},
        retention_days=30,
        writer_slot="a",
        reader_slot="a",
        keeper_slot="a",
        **{f"{what}_revision": number for what, number in revisions.items()},
    )
    return msgspec.structs.replace(row, **fields)


def provide(
    postgres: Postgres,
    roots: provision.Roots,
    row: control.Tenant,
    limits: provision.Limits = LIMITS,
) -> None:
    provision.provision_store(world.operator_conninfo(postgres, roots), row, roots, limits)


_CATALOG = {
    "roles": "select rolname, rolcanlogin, rolsuper, rolcreaterole, rolcreatedb, rolreplication,"
    " rolbypassrls, rolinherit, rolconnlimit,"
    " array(select unnest(rolconfig) order by 1) from pg_roles"
    " where rolname like %(roles)s order by 1",
    "members": "select roleid::regrole::text, member::regrole::text, admin_option, inherit_option,"
    " set_option from pg_auth_members where roleid::regrole::text like %(roles)s order by 1, 2",
    "schema": "select nspowner::regrole::text, array(select unnest(nspacl)::text order by 1)"
    " from pg_namespace where nspname = %(schema)s",
    "relations": "select relname, relkind::text, relowner::regrole::text,"
    " array(select unnest(relacl)::text order by 1),"
    " reloptions from pg_class where relnamespace = %(schema)s::regnamespace order by 1",
    "columns": "select c.relname, a.attname, a.atttypid::regtype::text, a.attnotnull,"
    " a.attstorage::text from pg_attribute a join pg_class c on c.oid = a.attrelid"
    " where c.relnamespace = %(schema)s::regnamespace and a.attnum > 0 order by 1, a.attnum",
    "functions": "select proname, proowner::regrole::text,"
    " array(select unnest(proacl)::text order by 1), prosecdef, proconfig,"
    " prosrc from pg_proc where pronamespace = %(schema)s::regnamespace order by 1",
    "partitions": "select pg_get_expr(relpartbound, oid) from pg_class"
    " where relnamespace = %(schema)s::regnamespace and relispartition order by 1",
}


def catalog(postgres: Postgres, tenant: TenantId) -> dict[str, str]:
    """What PostgreSQL's catalog says of a tenant, with the tenant's name left out."""
    schema = names.schema(tenant)
    what = {"schema": schema, "roles": schema.replace("_", r"\_") + r"\_%"}
    found = {}
    with psycopg.connect(postgres.url(database=provision.DATABASE)) as connection:
        for part, query in _CATALOG.items():
            found[part] = str(connection.execute(query.encode(), what).fetchall())
        for table in ("settings", "alembic_version"):
            query = f"select * from {schema}.{table}"
            found[table] = str(connection.execute(query.encode()).fetchall())
    return {part: text.replace(schema, "T") for part, text in found.items()}


def passwords(postgres: Postgres, tenant: TenantId) -> dict[str, str]:
    """What the server keeps of the passwords of a tenant's logins."""
    with psycopg.connect(postgres.url()) as connection:
        return dict(
            connection.execute(
                "select rolname, rolpassword from pg_authid where rolcanlogin"
                " and rolname like %s order by 1",
                [names.schema(tenant).replace("_", r"\_") + r"\_%"],
            ).fetchall()
        )


class CutError(psycopg.OperationalError):
    """The connection is gone, as the test wants it."""


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A counter of statements that are let through; at zero the connection fails."""
    left = [-1]
    execute = psycopg.Cursor.execute

    def counted(self: psycopg.Cursor[Any], *args: Any, **options: Any) -> psycopg.Cursor[Any]:
        if left[0] == 0:
            raise CutError("the test cut the connection")
        left[0] -= 1
        return execute(self, *args, **options)

    monkeypatch.setattr(psycopg.Cursor, "execute", counted)
    return left


# Made in steps


def test_a_run_that_was_cut_after_any_statement_is_completed_by_the_next(
    postgres, roots, cut, monkeypatch
):
    monkeypatch.setenv("PGOPTIONS", "-c synchronous_commit=off")  # for speed alone
    whole = tenant_row()
    provide(postgres, roots, whole)
    expected = catalog(postgres, whole.id)

    for count in itertools.count():
        row = tenant_row()
        cut[0] = count
        try:
            provide(postgres, roots, row)
        except (CutError, DBAPIError):
            cut[0] = -1
        else:
            break
        provide(postgres, roots, row)

        assert catalog(postgres, row.id) == expected, f"cut after {count} statements"
    assert count > 30


def test_a_second_run_changes_nothing(postgres, roots):
    row = tenant_row()
    provide(postgres, roots, row)
    before = catalog(postgres, row.id), passwords(postgres, row.id)
    provide(postgres, roots, row)

    assert (catalog(postgres, row.id), passwords(postgres, row.id)) == before


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("alter role {}_w_a password 'guessed'", id="a password"),
        pytest.param("alter role {}_w_a nologin", id="a closed login"),
        pytest.param("alter role {}_r_a connection limit 0", id="a connection limit"),
        pytest.param("alter role {}_w_a reset statement_timeout", id="a timeout"),
        pytest.param("revoke all on {}.ledger from {}_w_a", id="rights on a table"),
        pytest.param("revoke usage on schema {} from {}_r_a", id="rights on the schema"),
        pytest.param(
            "revoke execute on function {}.ensure_partition from {}_k_a", id="rights on a function"
        ),
        pytest.param("alter table {}.usage owner to logweir_operator", id="an owner"),
        pytest.param("update {}.settings set retention_days = 1", id="the retention"),
        pytest.param("drop owned by {}_r_a; drop role {}_r_a", id="a login that is gone"),
    ],
)
def test_what_was_changed_by_hand_is_put_right(postgres, roots, damage):
    row = tenant_row()
    provide(postgres, roots, row)
    before = catalog(postgres, row.id), passwords(postgres, row.id)
    schema = names.schema(row.id)
    with psycopg.connect(postgres.url(database=provision.DATABASE)) as connection:
        connection.execute(damage.format(schema, schema).encode())
    damaged = catalog(postgres, row.id), passwords(postgres, row.id)
    provide(postgres, roots, row)

    assert damaged != before
    assert (catalog(postgres, row.id), passwords(postgres, row.id)) == before


def test_a_changed_retention_and_other_limits_are_applied_by_the_next_run(postgres, roots):
    row = tenant_row()
    provide(postgres, roots, row)
    longer = msgspec.structs.replace(row, retention_days=90)
    provide(postgres, roots, longer, provision.Limits(buffer_bytes=1, connection_limit=7))

    found = catalog(postgres, row.id)
    assert found["settings"] == "[(True, 90, 'month', None)]"
    assert found["roles"].count(", 7, ") == 3


def test_ids_that_differ_by_a_hyphen_only_are_two_tenants(postgres, roots):
    rows = [tenant_row("ab-c"), tenant_row("a-bc"), tenant_row("abc")]
    for row in rows:
        provide(postgres, roots, row)

    schemas = {names.schema(row.id) for row in rows}
    assert schemas == {"t_ab_c", "t_a_bc", "t_abc"}
    assert len({next(iter(passwords(postgres, row.id).values())) for row in rows}) == 3


def test_a_rotated_login_has_the_rights_of_the_first_and_both_can_log_in(postgres, roots):
    row = tenant_row()
    provide(postgres, roots, row)
    rotated = msgspec.structs.replace(
        row, writer_slot="b", writer_revision=2, rotation="overlapping"
    )
    provide(postgres, roots, rotated)

    for one in (row, rotated):
        login = Login(*provision.tenant_password(roots, one, "w"))
        text = store.conninfo(world.store_server(postgres), login, "test")
        with psycopg.connect(text) as connection:
            [(count,)] = connection.execute("select count(*) from ledger").fetchall()
        assert count == 0
    relations = catalog(postgres, row.id)["relations"]
    assert relations.replace("T_w_b", "T_w_a").count("T_w_a=") == 2 * relations.count("T_w_a=")


def test_bootstrapping_again_changes_nothing(spare_postgres, roots):
    query = "select rolname, rolpassword, rolcreaterole, rolsuper from pg_authid order by 1"
    with psycopg.connect(spare_postgres.url(), autocommit=True) as connection:
        before = connection.execute(query).fetchall()
        provision.bootstrap_store(spare_postgres.url(), roots)
        provision.upgrade_control(world.operator_conninfo(spare_postgres, roots))
        after = connection.execute(query).fetchall()

    assert after == before


# Passwords


def test_the_server_keeps_scram_verifiers_only(postgres, roots):
    row = tenant_row()
    provide(postgres, roots, row)

    kept = passwords(postgres, row.id)
    assert set(kept) == {names.login(row.id, kind, "a") for kind in ("w", "r", "k")}
    assert all(text.startswith("SCRAM-SHA-256$4096:") for text in kept.values())


def test_a_server_that_logs_every_statement_logs_no_password(
    spare_postgres, roots, servers_folder: Path
):
    row = tenant_row()
    log = servers_folder / "spare.log"
    begin = log.stat().st_size
    with psycopg.connect(spare_postgres.url(), autocommit=True) as connection:
        connection.execute("alter role logweir_operator set log_statement = 'all'")
        provide(spare_postgres, roots, row)
        connection.execute("alter role logweir_operator reset log_statement")

    logged = log.read_bytes()[begin:].decode()
    secrets = [provision.tenant_password(roots, row, kind)[1] for kind in ("w", "r", "k")]
    assert logged.count("SCRAM-SHA-256$") >= 3
    assert not [secret for secret in secrets if secret in logged]


@pytest.mark.parametrize("kind", ["w", "r", "k"])
def test_a_login_has_a_password_of_its_own(roots, kind):
    first, second = tenant_row(), tenant_row()
    names_and_passwords = [
        provision.tenant_password(roots, one, kind)
        for one in (first, second, msgspec.structs.replace(first, **{_revision(kind): 2}))
    ]

    assert len({password for _, password in names_and_passwords}) == 3


def _revision(kind: str) -> str:
    return {"w": "writer", "r": "reader", "k": "keeper"}[kind] + "_revision"


# Who may do what


def attempt(conninfo: str, statement: str) -> None:
    """Run a statement with all that a hostile client may switch on."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("set default_transaction_read_only = off")
        connection.execute(statement.encode())


DENIED = pg_errors.InsufficientPrivilege

_NOBODY = [
    "create table {own}.mine (x int)",
    "create temporary table mine (x int)",
    "create table public.mine (x int)",
    "create schema mine",
    "create role mine",
    "alter table {own}.segments add column mine int",
    "drop table {own}.usage",
    "truncate {own}.ledger",
    "alter function {own}.ensure_partition reset all",
    "set role {own}_owner",
    "set role logweir_operator",
    "select * from {other}.ledger",
    "select * from {other}.segments",
    "select * from {other}.settings",
    "insert into {other}.usage (pipeline) values (1)",
    "select {other}.ensure_partition(0)",
    "select * from {other}.partition_bounds()",
    "select * from logweir.tenants",
    "select * from logweir.api_keys",
    "update logweir.pipelines set state = 'deleted'",
    "select rolpassword from pg_authid",
    "copy {own}.settings to program 'id'",
    "select pg_read_file('/etc/passwd')",
]
_BY_KIND = {
    "w": [
        "select * from {own}.segments",
        "select body from {own}.segments limit 1",
        "select * from {own}.quarantine",
        "select * from {own}.usage",
        "delete from {own}.segments",
        "delete from {own}.ledger",
        "delete from {own}.producers",
        "delete from {own}.quarantine",
        "delete from {own}.usage",
        "update {own}.segments set n = 0",
        "update {own}.usage set stored = 0",
        "update {own}.settings set retention_days = 1",
        "insert into {own}.alembic_version values ('9999')",
    ],
    "r": [
        "insert into {own}.segments (min_ts) values (0)",
        "update {own}.segments set n = 0",
        "delete from {own}.segments",
        "insert into {own}.ledger (key) values (gen_random_uuid())",
        "delete from {own}.ledger",
        "update {own}.settings set retention_days = 1",
        "select {own}.ensure_partition(0)",
        "select * from {own}.producers for update",
    ],
    "k": ["update {own}.alembic_version set version_num = '9999'"],
}


@pytest.mark.parametrize(
    ("kind", "statement"),
    [
        pytest.param(kind, text, id=f"{kind}: {text}")
        for kind, own in _BY_KIND.items()
        for text in (*_NOBODY, *own)
    ],
)
def test_a_tenant_s_login_may_not(two_tenants, kind, statement):
    postgres, roots, mine, other = two_tenants
    login = Login(*provision.tenant_password(roots, mine, kind))
    conninfo = store.conninfo(world.store_server(postgres), login, "test")

    with pytest.raises(DENIED):
        attempt(
            conninfo,
            statement.format(own=names.schema(mine.id), other=names.schema(other.id)),
        )


@pytest.fixture(scope="module")
def two_tenants(postgres, roots):
    rows = tenant_row(), tenant_row()
    for row in rows:
        provide(postgres, roots, row)
    return postgres, roots, *rows


@pytest.mark.parametrize(
    ("login", "statement"),
    [
        (provision.QUERY, "select * from logweir.objects"),
        (provision.QUERY, "select * from logweir.audit"),
        (provision.QUERY, "select * from logweir.leases"),
        (provision.QUERY, "update logweir.api_keys set revoked_at = null"),
        (provision.QUERY, "delete from logweir.tenants"),
        (provision.QUERY, "select * from {own}.segments"),
        (provision.QUERY, "set role {own}_r_a"),
        (provision.QUERY, "create role mine"),
        (provision.KEEPER, "select * from logweir.api_keys"),
        (provision.KEEPER, "select * from logweir.objects"),
        (provision.KEEPER, "select * from logweir.audit"),
        (provision.KEEPER, "update logweir.tenants set state = 'deleted'"),
        (provision.KEEPER, "select * from {own}.segments"),
        (provision.KEEPER, "set role {own}_k_a"),
        (provision.AUTH, "select * from logweir.objects"),
        (provision.AUTH, "select * from logweir.audit"),
        (provision.AUTH, "select * from logweir.leases"),
        (provision.AUTH, "update logweir.api_keys set scopes = 4"),
        (provision.AUTH, "update logweir.api_keys set expires_at = null"),
        (provision.AUTH, "truncate logweir.api_keys"),
        (provision.AUTH, "update logweir.tenants set access_revision = 9"),
        (provision.AUTH, "insert into logweir.pipelines (tenant, name) values ('a', 'b')"),
        (provision.AUTH, "delete from logweir.tenants"),
        (provision.AUTH, "create table logweir.mine (a int)"),
        (provision.AUTH, "select * from {own}.segments"),
        (provision.AUTH, "set role {own}_r_a"),
        (provision.AUTH, "create role mine"),
        (provision.OPERATOR, "select rolpassword from pg_authid"),
        (provision.OPERATOR, "alter role postgres password 'x'"),
        (provision.OPERATOR, "create role mine superuser"),
    ],
)
def test_a_platform_login_may_not(two_tenants, login, statement):
    postgres, roots, mine, _ = two_tenants
    who = Login(login, provision.platform_password(roots, login))
    conninfo = store.conninfo(world.store_server(postgres), who, "test")

    with pytest.raises(DENIED):
        attempt(conninfo, statement.format(own=names.schema(mine.id)))


def test_the_owner_cannot_log_in(two_tenants):
    postgres, _, mine, _ = two_tenants
    owner = names.owner(mine.id)

    with psycopg.connect(postgres.url()) as connection:
        query = "select rolcanlogin, rolpassword from pg_authid where rolname = %s"
        assert connection.execute(query, [owner]).fetchall() == [(False, None)]


def test_public_has_no_right_on_anything_of_a_tenant(two_tenants):
    postgres, _, mine, _ = two_tenants
    query = """
        select 'schema', n.nspname from pg_namespace n,
            aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
            where n.nspname = %(schema)s and a.grantee = 0
        union all select 'relation', c.relname from pg_class c,
            aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a
            where c.relnamespace = %(schema)s::regnamespace and a.grantee = 0
        union all select 'function', p.proname from pg_proc p,
            aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
            where p.pronamespace = %(schema)s::regnamespace and a.grantee = 0
    """

    with psycopg.connect(postgres.url(database=provision.DATABASE)) as connection:
        what = {"schema": names.schema(mine.id)}
        assert connection.execute(query, what).fetchall() == []


def test_functions_with_the_owner_s_rights_have_a_pinned_search_path(two_tenants):
    postgres, _, mine, _ = two_tenants
    query = (
        "select proname, proconfig from pg_proc"
        " where pronamespace = %s::regnamespace and prosecdef order by 1"
    )

    with psycopg.connect(postgres.url(database=provision.DATABASE)) as connection:
        found = connection.execute(query, [names.schema(mine.id)]).fetchall()
    assert "ensure_partition" in [name for name, _ in found]
    assert all("search_path=pg_catalog, pg_temp" in config for _, config in found)


def test_all_of_a_tenant_belongs_to_its_owner(two_tenants):
    postgres, _, mine, _ = two_tenants
    query = (
        "select relname from pg_class where relnamespace = %(schema)s::regnamespace"
        " and relowner::regrole::text <> %(owner)s"
        " union all select proname from pg_proc where pronamespace = %(schema)s::regnamespace"
        " and proowner::regrole::text <> %(owner)s"
    )

    with psycopg.connect(postgres.url(database=provision.DATABASE)) as connection:
        what = {"schema": names.schema(mine.id), "owner": names.owner(mine.id)}
        assert connection.execute(query, what).fetchall() == []


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        pytest.param(
            "w",
            {
                "statement_timeout": "30s",
                "lock_timeout": "10s",
                "idle_in_transaction_session_timeout": "30s",
            },
            id="writer",
        ),
        pytest.param(
            "r",
            {"statement_timeout": "2min", "default_transaction_read_only": "on"},
            id="reader",
        ),
        pytest.param("k", {"statement_timeout": "5min", "lock_timeout": "2s"}, id="keeper"),
    ],
)
def test_a_login_begins_with_its_bounds(two_tenants, kind, expected):
    postgres, roots, mine, _ = two_tenants
    login = Login(*provision.tenant_password(roots, mine, kind))

    with psycopg.connect(store.conninfo(world.store_server(postgres), login, "test")) as connection:
        found = {
            name: connection.execute(f"show {name}".encode()).fetchone()[0] for name in expected
        }
        path = connection.execute("show search_path").fetchone()[0]
    assert found == expected
    assert path == names.schema(mine.id)


def test_a_login_may_not_take_more_connections_than_its_limit(postgres, roots):
    row = tenant_row()
    provide(postgres, roots, row, provision.Limits(buffer_bytes=1, connection_limit=1))
    login = Login(*provision.tenant_password(roots, row, "w"))
    conninfo = store.conninfo(world.store_server(postgres), login, "test")

    with (
        psycopg.connect(conninfo),
        pytest.raises(psycopg.OperationalError, match="too many connections"),
    ):
        psycopg.connect(conninfo)


# The server's own settings


def test_a_server_that_keeps_the_promise_has_no_problems(postgres, roots):
    assert provision.store_problems(world.operator_conninfo(postgres, roots)) == []


class Careless(Postgres):
    """A PostgreSQL that somebody has made fast."""

    def command(self) -> servers.Command:
        command = super().command()
        wrong = [f"{name}=off" for name in PROMISES]
        options = [word for setting in wrong for word in ("-c", setting)]
        return msgspec.structs.replace(command, argv=(*command.argv, *options))


PROMISES = ("fsync", "full_page_writes", "synchronous_commit")


@pytest.fixture
def careless(servers_folder: Path) -> Iterator[Careless]:
    server = Careless(servers_folder / "careless", servers.free_port(), "super", accounts.choose())
    server.start(servers_folder / "careless.log")
    yield server
    server.stop()


def test_each_setting_that_breaks_the_promise_is_named_with_its_fix(careless):
    problems = provision.store_problems(careless.url())

    assert sorted(one.split()[3] for one in problems) == sorted(PROMISES)
    assert all("postgresql.conf" in one for one in problems)


def test_any_problem_ends_the_start(careless):
    with pytest.raises(errors.SetupError, match="fsync"):
        provision.check(provision.store_problems(careless.url()))


def test_a_commit_that_waits_for_a_standby_is_as_good(postgres, roots):
    conninfo = world.operator_conninfo(postgres, roots)
    stronger = psycopg.conninfo.make_conninfo(
        conninfo, options="-c synchronous_commit=remote_apply"
    )

    assert provision.store_problems(stronger) == []


def test_the_rows_of_a_tenant_are_looked_at_by_nobody_else(two_tenants):
    postgres, roots, mine, other = two_tenants
    for row in (mine, other):
        login = Login(*provision.tenant_password(roots, row, "r"))
        conninfo = store.conninfo(world.store_server(postgres), login, "test")
        with psycopg.connect(conninfo) as connection:
            visible = connection.execute(
                "select nspname from pg_namespace where nspname like 't\\_%'"
                " and has_schema_privilege(oid, 'usage')"
            ).fetchall()

        assert visible == [(names.schema(row.id),)]
