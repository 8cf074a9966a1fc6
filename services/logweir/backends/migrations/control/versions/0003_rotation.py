"""Rotation of credentials: in which phase a tenant is, and who asked for one."""

from alembic import op

revision = "0003"
down_revision = "0002"

_STATEMENTS = """
alter table tenants
    add column root_version int not null default 1,
    add column old_root_version int not null default 1,
    add column signed_since int[] not null default '{1}',
    add column rotation text not null default 'steady'
        check (rotation in ('steady', 'spreading', 'overlapping')),
    add column rotated_at timestamptz not null default now(),
    add column overlap_until timestamptz;
update tenants set rotated_at = created_at;

create table rotation_requests (
    subject text primary key,
    overlap_seconds int,
    asked_at timestamptz not null default clock_timestamp()
);
"""


def upgrade() -> None:
    """Add the columns and the table."""
    op.execute(_STATEMENTS)
