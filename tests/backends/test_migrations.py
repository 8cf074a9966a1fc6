"""Schemas are brought to the newest revision, once, by one, and never back."""

from __future__ import annotations

import concurrent.futures
import itertools
from collections.abc import Iterator

import psycopg
import pytest
import world
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from logweir.backends import migrations, provision

_numbers = itertools.count(1)


@pytest.fixture
def operator(spare_postgres, roots) -> str:
    return world.operator_conninfo(spare_postgres, roots)


@pytest.fixture
def schema(operator) -> Iterator[str]:
    """An empty schema of the operator's own."""
    name = f"migrate_{next(_numbers)}"
    with psycopg.connect(operator, autocommit=True) as connection:
        connection.execute(f"create schema {name}".encode())
        yield name
        connection.execute(f"drop schema {name} cascade".encode())


def tables(conninfo: str, schema: str) -> list[str]:
    with psycopg.connect(conninfo) as connection:
        query = "select tablename from pg_tables where schemaname = %s order by 1"
        return [row[0] for row in connection.execute(query, [schema]).fetchall()]


def scripts(kind: str) -> ScriptDirectory:
    config = Config()
    folder = str(migrations.__path__[0])
    config.set_main_option("script_location", f"{folder}/{kind}")
    return ScriptDirectory.from_config(config)


@pytest.mark.parametrize("kind", ["control", "tenant"])
def test_the_newest_revision_is_that_of_the_newest_script(kind):
    assert scripts(kind).get_heads() == [migrations.HEADS[kind]]


@pytest.mark.parametrize("kind", ["control", "tenant"])
def test_revisions_are_numbers_in_the_order_of_the_scripts(kind):
    oldest_first = [one.revision for one in scripts(kind).walk_revisions()][::-1]

    assert oldest_first == [f"{number:04}" for number in range(1, len(oldest_first) + 1)]


def test_an_empty_schema_is_brought_to_the_newest_revision(operator, schema):
    done = migrations.upgrade(operator, "tenant", schema)

    assert done
    assert {"segments", "ledger", "producers", "quarantine", "usage", "settings"} <= set(
        tables(operator, schema)
    )
    with psycopg.connect(operator) as connection:
        assert migrations.revision(connection, schema) == migrations.HEADS["tenant"]


def test_keys_of_before_there_was_an_api_for_them_are_those_of_resources(
    operator, schema, monkeypatch
):
    to_head = command.upgrade
    monkeypatch.setattr(command, "upgrade", lambda config, _: to_head(config, "0001"))
    migrations.upgrade(operator, "control", schema)
    monkeypatch.undo()
    with psycopg.connect(operator, autocommit=True) as connection:
        connection.execute(f"set search_path = {schema}".encode())
        connection.execute(
            "insert into tenants (id, cluster, namespace, name) values ('a', 'c', 'n', 'a')"
        )
        connection.execute(
            "insert into api_keys (id, tenant, name, scopes, revision, revoked_at)"
            " values (1, 'a', 'web', 1, 1, now()), (2, 'a', 'web', 1, 1, null)"
        )
        upgraded = migrations.upgrade(operator, "control", schema)
        found = connection.execute("select id, origin, created_by from api_keys order by id")

        assert upgraded
        assert found.fetchall() == [(1, "resource", ""), (2, "resource", "")]
        assert migrations.revision(connection, schema) == migrations.HEADS["control"]


def test_nothing_is_made_outside_of_the_schema(operator, schema):
    before = tables(operator, "public"), tables(operator, "logweir")
    migrations.upgrade(operator, "tenant", schema)

    assert (tables(operator, "public"), tables(operator, "logweir")) == before


def test_an_up_to_date_schema_is_left_alone(operator, schema):
    migrations.upgrade(operator, "tenant", schema)

    assert migrations.upgrade(operator, "tenant", schema) is False


def test_a_schema_of_a_newer_program_is_left_alone(operator, schema):
    migrations.upgrade(operator, "tenant", schema)
    with psycopg.connect(operator) as connection:
        connection.execute(f"update {schema}.alembic_version set version_num = '9999'".encode())

    assert migrations.upgrade(operator, "tenant", schema) is False
    with psycopg.connect(operator) as connection:
        assert migrations.revision(connection, schema) == "9999"


def test_a_schema_that_was_never_migrated_has_no_revision(operator, schema):
    with psycopg.connect(operator) as connection:
        assert migrations.revision(connection, schema) == ""


def test_a_migration_that_fails_leaves_nothing(operator, schema):
    with psycopg.connect(operator, autocommit=True) as connection:
        connection.execute(f"create table {schema}.settings (in_the_way int)".encode())
        with pytest.raises(Exception, match="already exists"):
            migrations.upgrade(operator, "tenant", schema)
        left = tables(operator, schema)
        connection.execute(f"drop table {schema}.settings".encode())
        done = migrations.upgrade(operator, "tenant", schema)

    assert left == ["settings"]
    assert done


def test_two_that_upgrade_at_once_do_it_once(operator, schema):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        running = [pool.submit(migrations.upgrade, operator, "tenant", schema) for _ in range(4)]
        for one in running:
            one.result()

    with psycopg.connect(operator) as connection:
        assert migrations.revision(connection, schema) == migrations.HEADS["tenant"]


def test_the_control_schema_is_up_to_date_after_the_start(operator):
    provision.upgrade_control(operator)

    with psycopg.connect(operator) as connection:
        assert migrations.revision(connection, "logweir") == migrations.HEADS["control"]


def test_tenants_of_the_first_revision_learn_of_rotations_in_place(operator, schema):
    migrations._run_alembic(operator, "control", schema, "", revision="0001")
    with psycopg.connect(operator, autocommit=True) as connection:
        connection.execute(f"set search_path = {schema}".encode())
        connection.execute(
            "insert into tenants (id, cluster, namespace, name, created_at)"
            " values ('acme', 'up', 'default', 'acme', '2026-01-01Z')"
        )
        migrations.upgrade(operator, "control", schema)

        found = connection.execute(
            "select root_version, signed_since, rotation, rotated_at = created_at, overlap_until"
            " from tenants"
        ).fetchall()
    assert found == [(1, [1], "steady", True, None)]


def test_deletions_that_began_before_there_were_steps_begin_with_the_first(
    operator, schema, monkeypatch
):
    upgrade = command.upgrade
    with monkeypatch.context() as patched:
        patched.setattr(command, "upgrade", lambda config, _: upgrade(config, "0001"))
        migrations.upgrade(operator, "control", schema)
    with psycopg.connect(operator, autocommit=True) as connection:
        old = ["active", "readonly", "deleting", "deleted"]
        for state in old:
            connection.execute(
                f"insert into {schema}.tenants (id, cluster, namespace, name, state)"
                " values (%s, 'up', 'default', %s, %s)".encode(),
                [state, state, state],
            )
        migrations.upgrade(operator, "control", schema)
        rows = connection.execute(
            f"select id, state, lost_blocks, lost_records from {schema}.tenants".encode()
        ).fetchall()

    assert {one: state for one, state, *_ in rows} == {
        **{state: state for state in old},
        "deleting": "refusing",
    }
    assert {tuple(lost) for _, _, *lost in rows} == {(0, 0)}


def test_a_tenant_of_the_first_revision_is_upgraded_in_place_and_its_usage_put_right(
    operator, schema
):
    migrations._run_alembic(operator, "tenant", schema, "", revision="0001")
    with psycopg.connect(operator, autocommit=True) as connection:
        connection.execute(f"set search_path = {schema}".encode())
        connection.execute(
            "select ensure_partition((extract(epoch from clock_timestamp()) * 1e9)::int8)"
        )
        connection.execute(
            "insert into segments (pipeline, min_ts, max_ts, n, filter, body)"
            " select p, t, t, 1, 'abc', repeat('x', 10 * p)::bytea"
            " from generate_series(1, 3) as p,"
            " (select (extract(epoch from clock_timestamp()) * 1e9)::int8 as t) as now"
        )
        # Two were merged since, one as usage says it, and of one nothing is left.
        connection.execute(
            "insert into usage (pipeline, stored, stored_bytes, refused)"
            " values (1, 1, 20, '{}'), (1, 1, 20, '{}'), (2, 1, 23, null), (4, 1, 7, '{}')"
        )

        migrations.upgrade(operator, "tenant", schema)

        sums = connection.execute(
            "select pipeline, sum(stored), sum(stored_bytes) from usage group by 1 order by 1"
        ).fetchall()
        storage = connection.execute("select stored_bytes from storage").fetchall()
    assert sums == [(1, 2, 13), (2, 1, 23), (3, 0, 33), (4, 1, 0)]
    assert storage == [(0,)]
