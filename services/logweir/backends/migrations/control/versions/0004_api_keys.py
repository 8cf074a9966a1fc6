"""Keys that are made over the API besides those of resources; the login of the role `auth`.

`revoked_at` may lie ahead: a key that was rolled ends then. So the index of names in use, which
holds keys without one, lets the old generation live on beside the new one.
"""

from alembic import op

revision = "0004"
down_revision = "0003"

_STATEMENTS = """
alter table api_keys
    add column origin text not null default 'resource' check (origin in ('resource', 'api')),
    add column created_by text not null default '';

grant usage on schema logweir to logweir_auth;
grant select on tenants, pipelines, api_keys to logweir_auth;
grant insert, delete on api_keys to logweir_auth;
grant update (revoked_at) on api_keys to logweir_auth;
"""


def upgrade() -> None:
    """Say where each key comes from."""
    op.execute(_STATEMENTS)
