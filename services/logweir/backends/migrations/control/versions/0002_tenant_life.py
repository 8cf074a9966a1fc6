"""The steps of a tenant's deletion as states, and what a deletion could not store."""

from alembic import op

revision = "0002"
down_revision = "0001"

_STATEMENTS = """
alter table tenants drop constraint tenants_state_check;
update tenants set state = 'refusing' where state = 'deleting';
alter table tenants add constraint tenants_state_check check (state in ('provisioning', 'active',
    'readonly', 'refusing', 'draining', 'sealed', 'tombstoned', 'dropped', 'retained', 'deleted'));
alter table tenants add column lost_blocks bigint not null default 0;
alter table tenants add column lost_records bigint not null default 0;
"""


def upgrade() -> None:
    """Let every tenant whose deletion has begun go through the steps."""
    op.execute(_STATEMENTS)
