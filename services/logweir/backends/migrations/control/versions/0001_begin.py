"""The control schema: tenants, pipelines, keys, objects of `up`, leases, audit."""

from alembic import op

revision = "0001"
down_revision = None

_STATEMENTS = """
create table tenants (
    id text primary key,
    cluster text not null,
    namespace text not null,
    name text not null,
    state text not null default 'provisioning'
        check (state in ('provisioning', 'active', 'readonly', 'deleting', 'deleted')),
    spec jsonb not null default '{}',
    retention_days int not null default 30,
    writer_slot char(1) not null default 'a',
    reader_slot char(1) not null default 'a',
    keeper_slot char(1) not null default 'a',
    writer_revision int not null default 1,
    reader_revision int not null default 1,
    keeper_revision int not null default 1,
    redis_revision int not null default 1,
    ingest_revision int not null default 1,
    access_revision int not null default 1,
    created_at timestamptz not null default now()
);
create unique index tenants_of_object on tenants (cluster, namespace, name)
    where state <> 'deleted';

create table pipelines (
    id int generated always as identity primary key,
    tenant text not null references tenants,
    name text not null,
    state text not null default 'active' check (state in ('active', 'deleted')),
    spec jsonb not null default '{}',
    retention_days int not null default 30,
    created_at timestamptz not null default now()
);
create unique index pipelines_of_tenant on pipelines (tenant, name) where state <> 'deleted';

create table api_keys (
    id bigint primary key,
    tenant text not null references tenants,
    name text not null,
    pipeline int not null default 0,
    scopes int not null,
    revision int not null,
    generation int not null default 1,
    expires_at timestamptz,
    created_at timestamptz not null default now(),
    revoked_at timestamptz
);
create unique index api_keys_in_use on api_keys (tenant, name) where revoked_at is null;

create table objects (
    kind text not null,
    namespace text not null,
    name text not null,
    generation bigint not null default 1,
    spec jsonb not null,
    source text not null default '',
    source_hash text not null default '',
    status jsonb not null default '{}',
    deleted_at timestamptz,
    created_at timestamptz not null default now(),
    primary key (kind, namespace, name)
);

create table leases (
    name text primary key,
    holder text not null,
    until timestamptz not null
);

create table audit (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    actor text not null,
    action text not null,
    object text not null,
    outcome text not null,
    details jsonb not null default '{}'
);

grant usage on schema logweir to logweir_query, logweir_keeper;
grant select on tenants, pipelines, api_keys to logweir_query;
grant select on tenants, pipelines to logweir_keeper;
grant select, insert, update, delete on leases to logweir_keeper;
"""


def upgrade() -> None:
    """Make the tables."""
    op.execute(_STATEMENTS)
