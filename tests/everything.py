"""All that a tenant has in any server, in a form that is the same for any two equal tenants."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import psycopg
from reconciling import Place

from logweir.backends import control, provision
from logweir.backends.journal import TOLD
from logweir.core import names
from logweir.core.binding import CollectorBinding, IngestBinding
from logweir.core.names import TenantId

_CATALOG = {
    "roles": "select rolname, rolcanlogin, rolcreaterole, rolinherit, rolconnlimit,"
    " array(select unnest(rolconfig) order by 1) from pg_roles where rolname like %(roles)s"
    " order by 1",
    "members": "select roleid::regrole::text, member::regrole::text, grantor::regrole::text,"
    " admin_option, inherit_option, set_option from pg_auth_members"
    " where roleid::regrole::text like %(roles)s order by 1, 2, 3",
    "schemas": "select nspname, nspowner::regrole::text,"
    " array(select unnest(nspacl)::text order by 1) from pg_namespace"
    " where nspname like %(schemas)s order by 1",
    "relations": "select s.nspname, relname, relkind::text, relowner::regrole::text,"
    " array(select unnest(relacl)::text order by 1), reloptions,"
    " pg_get_expr(relpartbound, c.oid) from pg_class c join pg_namespace s"
    " on s.oid = c.relnamespace where s.nspname like %(schemas)s order by 1, 2",
    "functions": "select s.nspname, proname, proowner::regrole::text,"
    " array(select unnest(proacl)::text order by 1), prosecdef, proconfig from pg_proc p"
    " join pg_namespace s on s.oid = p.pronamespace where s.nspname like %(schemas)s"
    " order by 1, 2",
    "tenants": "select to_jsonb(t) - 'created_at' from logweir.tenants t where name = %(name)s"
    " order by created_at",
    "pipelines": "select name, state, spec, retention_days from logweir.pipelines"
    " where tenant = %(tenant)s order by id",
    "keys": "select name, pipeline > 0, scopes, revision, generation, expires_at,"
    " revoked_at is null from logweir.api_keys where tenant = %(tenant)s order by name, revision",
    "objects": "select kind, name, generation, spec, jsonb_path_query_array(status,"
    " '$.conditions[*].reason') from logweir.objects where name = %(name)s"
    " or spec #>> '{tenantRef,name}' = %(name)s order by kind, name",
}


async def of_tenant(place: Place, name: str) -> dict[str, str]:
    """Everything of the newest tenant that a LogTenant of this name has or had."""
    rows = place.sql("select id from logweir.tenants where name = %s order by created_at", name)
    tenant = TenantId(rows[-1][0])
    schema = names.schema(tenant)
    what = {
        "name": name,
        "tenant": tenant,
        "roles": schema.replace("_", r"\_") + r"\_%",
        "schemas": "%" + schema.replace("_", r"\_"),
    }
    with psycopg.connect(place.postgres.url(database=provision.DATABASE)) as connection:
        found: dict[str, Any] = {
            part: connection.execute(query.encode(), what).fetchall()
            for part, query in _CATALOG.items()
        }
    found["settings"] = _settings(place, schema)
    found["users"] = await _users(place, tenant)
    found["journal"] = await _journal(place, tenant)
    found["served"] = _served(place, tenant)
    found["files"] = [one for one in place.key_files() if one == f"default.{name}.json"]
    return {part: _plain(str(value), place, tenant, name) for part, value in found.items() if value}


def _plain(text: str, place: Place, tenant: TenantId, name: str) -> str:
    """A text without what differs between two equal tenants: ids, names, moments."""
    tag = names.journal_tenant(tenant).split(":")[0]
    for one, as_one in ((names.schema(tenant), "SCHEMA"), (tag, "TAG"), (tenant, "TENANT")):
        text = text.replace(one, as_one)
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:[\d.]+\+00:00", "MOMENT", text)
    return re.sub(rf"\b{re.escape(name)}\b", "NAME", text)


def _settings(place: Place, schema: str) -> list[tuple[Any, ...]]:
    if not place.sql("select 1 from pg_namespace where nspname = %s", schema):
        return []
    rows = [f"select to_jsonb(t) from {schema}.{one} t" for one in ("settings", "alembic_version")]
    return [row for query in rows for row in place.sql(query)]


async def _users(place: Place, tenant: TenantId) -> list[str]:
    """The tenant's users as the server has them, and whether their passwords are those of today."""
    row = next((one for one in await place.control.tenants() if one.id == tenant), None)
    lines = await place.cluster._journal.acl_list()
    return sorted(_right(place, row, one) for one in lines if f"user t_{tenant}." in one)


def _right(place: Place, row: control.Tenant | None, line: str) -> str:
    user = line.split()[1]
    password = provision.journal_password(place.roots, row, user) if row else ""
    return line.replace(hashlib.sha256(password.encode()).hexdigest(), "RIGHT")


async def _journal(place: Place, tenant: TenantId) -> list[object]:
    """The tenant's keys with what hashes hold, pipelines by their order."""
    journal = place.cluster._journal
    prefix = names.journal_tenant(tenant)
    found: list[object] = []
    for key in sorted(await journal.keys(prefix + "*")):
        kind = await journal.type(key)
        value = await journal.hgetall(key) if kind == b"hash" else kind
        if kind == b"hash":
            value.pop(TOLD.encode(), None)  # the moment of the last telling
        found.append((re.sub(r":\d+:", ":N:", key.decode()), value))
        if kind == b"stream":
            groups = await journal.xinfo_groups(key)
            found += [(one["name"], one["pending"]) for one in groups]
    return found


def _served(place: Place, tenant: TenantId) -> list[object]:
    """What the binding files say of the tenant."""

    def of(binding: IngestBinding | CollectorBinding) -> list[str]:
        return [p.name for t in binding.tenants if t.tenant == tenant for p in t.pipelines]

    both = of(place.ingest_binding()), of(place.collector_binding())
    return [*both] if any(both) else []


__all__ = ["of_tenant"]
