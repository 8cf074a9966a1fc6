"""The database schemas, by Alembic: `control` once, `tenant` once for each tenant.

Expand and contract only: a program of version N runs on the tenant schema of N-1. The newest
revision of each stands here, so that a start on an up-to-date schema needs no Alembic; a test
holds it to the scripts. Revisions are numbers of four digits, each script after the one before.
"""

from __future__ import annotations

import importlib.resources
from typing import Final, Literal

import psycopg
from psycopg import sql

HEADS: Final = {"control": "0004", "tenant": "0002"}

LOCK_TIMEOUT: Final = "2s"
"""A change that waits for a lock holds up all who come after it; it gives up and is tried again."""

LOCK_WAIT: Final = "60s"
"""How long an upgrade waits for another one of the same schema; then it is tried again."""

Kind = Literal["control", "tenant"]


def revision(connection: psycopg.Connection[tuple[object, ...]], schema: str) -> str:
    """Return the revision that a schema is at, empty when it was never migrated."""
    found = connection.execute(
        "select to_regclass(format('%%I.alembic_version', %s::text))", [schema]
    ).fetchone()
    if not found or found[0] is None:
        return ""
    query = sql.SQL("select version_num from {}.alembic_version").format(sql.Identifier(schema))
    row = connection.execute(query).fetchone()
    return str(row[0]) if row else ""


def upgrade(conninfo: str, kind: Kind, schema: str, *, tenant: str = "") -> bool:
    """Bring a schema, which must exist, to the newest revision; true when anything was done.

    A schema that a newer program has changed is left as it is. Who comes while another upgrades
    waits for it. The connection's user becomes the owner of what is made.
    """
    with psycopg.connect(conninfo, autocommit=True) as connection:
        if revision(connection, schema) >= HEADS[kind]:
            return False
    _run_alembic(conninfo, kind, schema, tenant)
    return True


def _run_alembic(
    conninfo: str, kind: Kind, schema: str, tenant: str, revision: str = "head"
) -> None:
    # Alembic and SQLAlchemy take half a second to import, so a warm start never does.
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine, pool, text

    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(conninfo),
        poolclass=pool.NullPool,
    )
    folder = importlib.resources.files("logweir.backends.migrations").joinpath(kind)
    config = Config()
    config.set_main_option("script_location", str(folder))
    with engine.connect() as connection:
        connection.execute(
            text(
                "select set_config('search_path', :s, false), set_config('lock_timeout', :w, false)"
            ),
            {"s": schema, "w": LOCK_WAIT},
        )
        connection.execute(
            text("select pg_advisory_lock(hashtextextended('migrate ' || :s, 0))"), {"s": schema}
        )
        connection.execute(
            text("select set_config('lock_timeout', :t, false)"), {"t": LOCK_TIMEOUT}
        )
        connection.commit()  # else the first rollback undoes it
        connection.dialect.default_schema_name = schema
        config.attributes.update(connection=connection, schema=schema, tenant=tenant)
        command.upgrade(config, revision)
    engine.dispose()
