"""The chart's job, on real databases and a real API server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import psycopg
import pytest
from bootstrapping import Job
from controlplane.plane import Plane

from logweir.backends import control, migrations, provision, readiness, redis_client
from logweir.core import errors
from logweir.core.names import TenantId
from logweir_operator import bindings, roots
from logweir_operator.config import Evaluation


@pytest.fixture
def job(tmp_path: Path, plane: Plane, namespace: str) -> Job:
    return Job(tmp_path, plane, namespace)


def tenant_row() -> control.Tenant:
    revisions = ("writer", "reader", "keeper", "redis", "ingest", "access")
    return control.Tenant(
        id=TenantId("acme"),
        cluster="test",
        namespace="default",
        name="acme",
        state="active",
        spec={},
        retention_days=30,
        writer_slot="a",
        reader_slot="a",
        keeper_slot="a",
        **{f"{what}_revision": 1 for what in revisions},
    )


def can_have_tenants(job: Job) -> None:
    """The operator's login makes a tenant, whose login comes in."""
    held = roots.site_of(job.config.servers().store, job.config.servers().journal, job.roots())
    row = tenant_row()
    limits = provision.Limits(buffer_bytes=1 << 30)
    provision.provision_store(job.operator(), row, held.roots, limits)
    login, password = provision.tenant_password(held.roots, row, "w")
    with psycopg.connect(job.operator(), user=login, password=password) as connection:
        assert connection.execute("select count(*) from t_acme.ledger").fetchone() == (0,)


async def test_it_makes_all_that_is_needed_and_repeats_without_a_change(
    job, fresh_postgres, fresh_valkey
):
    job.use(fresh_postgres, fresh_valkey)

    first = await job.run()
    made = job.roots()
    second = await job.run()

    assert first[-1] == second[-1] == "done: the databases are ready"
    assert any("Secret logs-roots: made" in line for line in first)
    assert not any("made" in line for line in second)
    assert job.roots() == made
    can_have_tenants(job)


async def test_two_at_once_come_to_the_same_end(job, fresh_postgres, fresh_valkey):
    job.use(fresh_postgres, fresh_valkey)

    ends = await asyncio.gather(job.run(), job.run(), job.run())

    assert {said[-1] for said in ends} == {"done: the databases are ready"}
    can_have_tenants(job)


async def test_a_login_that_may_make_roles_and_databases_is_enough(
    job, each_postgres, fresh_valkey
):
    with psycopg.connect(each_postgres.url(), autocommit=True) as connection:
        connection.execute("create role admin login createrole createdb password 'admin'")
    job.use(each_postgres, fresh_valkey, "admin", "admin")

    await job.run()
    await job.run()

    can_have_tenants(job)
    with psycopg.connect(each_postgres.url()) as connection:
        others = connection.execute(
            "select has_database_privilege('logweir_query', 'template1', 'connect')"
        ).fetchone()
    assert others == (True,), "the other databases of a shared server are not ours to close"


async def test_a_login_without_createdb_takes_a_database_that_was_made_for_it(
    job, each_postgres, fresh_valkey
):
    with psycopg.connect(each_postgres.url(), autocommit=True) as connection:
        connection.execute("create role admin login createrole password 'admin'")
        connection.execute("create role logweir_operator createrole")
        connection.execute("grant logweir_operator to admin with admin option")
        connection.execute("create database logweir owner logweir_operator template template0")
    job.use(each_postgres, fresh_valkey, "admin", "admin")

    await job.run()

    can_have_tenants(job)


async def test_an_older_program_leaves_a_newer_schema(
    job, fresh_postgres, fresh_valkey, monkeypatch
):
    job.use(fresh_postgres, fresh_valkey)
    await job.run()
    with psycopg.connect(job.operator()) as connection:
        connection.execute("update logweir.alembic_version set version_num = '9999'")

    said = await job.run()

    newest = migrations.HEADS["control"]
    assert f"control schema: 9999, newer than this program's {newest}" in said
    with psycopg.connect(job.operator()) as connection:
        assert migrations.revision(connection, "logweir") == "9999"


async def test_roots_that_were_lost_are_not_replaced_under_tenants(
    job, fresh_postgres, fresh_valkey
):
    job.use(fresh_postgres, fresh_valkey)
    await job.run()
    door = control.Control(job.operator())
    await door.claim_tenant(TenantId("acme"), "test", "default", "acme")
    await door.close()
    job.plane.api.delete("Secret", "logs-roots", job.config.namespace)

    with pytest.raises(errors.SetupError, match="Put the Secret back from a copy"):
        await job.run()

    assert job.plane.api.find("Secret", "logs-roots", job.config.namespace) is None


async def test_it_waits_for_servers_and_says_why(job, fresh_postgres, fresh_valkey):
    job.use(fresh_postgres, fresh_valkey)
    (job.folder / "redis" / "password").write_text("wrong")
    job.config = msgspec.structs.replace(job.config, bootstrap_wait_s=0.5)

    with pytest.raises(
        errors.UnavailableError, match=r"Redis at .* does not answer: .*invalid username-password"
    ):
        await job.run()


async def test_settings_that_break_the_promise_are_refused(job, fresh_postgres, fresh_valkey):
    job.use(fresh_postgres, fresh_valkey)
    await job.run()
    client = provision_client(job)
    await client.config_set("appendfsync", "everysec")
    await client.aclose()

    with pytest.raises(errors.SetupError, match="appendfsync"):
        await job.run()


def provision_client(job: Job):
    found = job.config.servers()
    return redis_client.client(found.journal, found.journal_login)


async def test_passwords_of_bundled_databases_are_made_once(
    tmp_path, plane, namespace, fresh_postgres, fresh_valkey
):
    bundled = Evaluation(postgres_host="logs-postgres", redis_host="logs-redis")
    job = Job(tmp_path, plane, namespace, evaluation=bundled, bootstrap_wait_s=0.1)

    for _ in range(2):
        with pytest.raises(errors.UnavailableError, match="PostgreSQL at logs-postgres:5432"):
            await job.run()
        first = job.secret("logs-postgres"), job.secret("logs-redis")
    again = job.secret("logs-postgres"), job.secret("logs-redis")

    assert first == again
    assert first[0]["username"] == "postgres"
    assert len(first[0]["password"]) == 48
    assert (tmp_path / "redis" / "password").read_text() == first[1]["password"]


async def test_a_secret_of_another_database_is_not_taken_for_the_bundled_one(
    tmp_path, plane, namespace
):
    """Else a person's own PostgreSQL would be closed to its other databases."""
    own = {"host": "db.example.com", "username": "postgres", "password": "theirs"}
    plane.api.create(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "logs-postgres", "namespace": namespace},
            "stringData": own,
        }
    )
    bundled = Evaluation(postgres_host="logs-postgres", redis_host="logs-redis")
    job = Job(tmp_path, plane, namespace, evaluation=bundled, bootstrap_wait_s=0.1)

    with pytest.raises(errors.SetupError, match=r"its host is 'db\.example\.com'"):
        await job.run()


async def test_a_role_waits_for_the_schema_of_its_version(
    job, fresh_postgres, fresh_valkey, tmp_path
):
    job.use(fresh_postgres, fresh_valkey)
    await job.run()
    found = job.config.servers()
    site = roots.site_of(found.store, found.journal, job.roots())
    for role in (bindings.query, bindings.keeper, bindings.auth):
        path = tmp_path / f"{role.__name__}.json"
        path.write_bytes(msgspec.json.encode(role(site)))
        assert readiness.problem(path) == ""

    with psycopg.connect(job.operator()) as connection:
        connection.execute("update logweir.alembic_version set version_num = '0001'")

    assert "is at revision 0001" in readiness.problem(path)
    with pytest.raises(errors.UnavailableError, match="0001"):
        readiness.await_schema(path, 0.0, lambda text: None)
