"""Retention by bytes and by partitions, and usage that adds up with the segments at all times.

Adds to what is there and changes none of it: a collector, a reader or a keeper of the program
before goes on with it. What such a keeper merges is put right by `correct_usage`.
"""

from alembic import context, op

revision = "0002"
down_revision = "0001"

_TABLES = """
alter table settings add column retention_bytes int8;

create table storage (
    one boolean primary key default true check (one),
    stored_bytes int8 default 0,
    oldest_ns int8,
    next_drop_ns int8,
    leaving_until int8,
    leaving_since xid8
) with (fillfactor = 50);
insert into storage default values;

-- For a pipeline's newest row, and for the sum of all: usage is kept for ever.
create index usage_newest on usage (pipeline, at desc) include (stored_bytes);
"""

_CHANGE_USAGE = """
create function change_usage(p int4, bytes int8) returns void
language sql
set search_path = pg_catalog, pg_temp
as $body$
    -- How far the journal is drained is said by a pipeline's newest row: what the newest one says
    -- is said again, and nothing when there is none.
    insert into {schema}.usage (pipeline, requests, stored, quarantined, expired, repeated,
        raw_bytes, stored_bytes, refused, oldest_pending_at)
    select p, 0, 0, 0, 0, 0, 0, bytes, '{}', coalesce((
        select coalesce(u.oldest_pending_at, u.at) from {schema}.usage u
        where u.pipeline = p order by u.at desc limit 1), to_timestamp(0))
    where bytes <> 0
$body$
"""

_CORRECT_USAGE = """
create function correct_usage() returns int8
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $body$
declare
    corrected int8;
begin
    -- One at a time. All that is compared is of one statement, so of one moment.
    lock table {schema}.storage in share update exclusive mode;
    with live as (
        select s.pipeline, sum(octet_length(s.body) + coalesce(octet_length(s.filter), 0)) as bytes
        from {schema}.segments s group by 1
    ), counted as (
        select u.pipeline, sum(u.stored_bytes) as bytes from {schema}.usage u group by 1
    ), wrong as materialized (
        select pipeline, (coalesce(l.bytes, 0) - coalesce(c.bytes, 0))::int8 as bytes
        from live l full join counted c using (pipeline)
        where coalesce(l.bytes, 0) <> coalesce(c.bytes, 0)
    ), done as (
        select w.bytes, {schema}.change_usage(w.pipeline, w.bytes) from wrong w
    )
    select coalesce(sum(abs(d.bytes)), 0)::int8 into corrected from done d;
    return corrected;
end
$body$
"""

_DROP_PARTITION = """
create function drop_partition(first_ns int8) returns text
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'
as $body$
declare
    ns constant int8 := 1000000000;
    -- A query that was planned when the records were not expired yet has begun by then.
    grace constant int8 := 300 * ns;
    now_ns constant int8 := (extract(epoch from clock_timestamp()) * ns)::int8;
    days int;
    most_bytes int8;
    newer_bytes int8;
    partition text;
    end_ns int8;
    expired_ns int8;
    decided xid8;
    gone record;
begin
    lock table {schema}.storage in share update exclusive mode;
    select b.name, b.high into partition, end_ns
    from {schema}.partition_bounds() b where b.low = first_ns;
    if partition is null then
        return 'gone';
    end if;
    select s.retention_days, s.retention_bytes into days, most_bytes from {schema}.settings s;
    expired_ns := now_ns - days * (86400 * ns) - grace;
    if end_ns > expired_ns then
        if most_bytes is not null then
            select sum(octet_length(s.body) + coalesce(octet_length(s.filter), 0))
            into newer_bytes from {schema}.segments s where s.min_ts >= end_ns;
        end if;
        if most_bytes is null or coalesce(newer_bytes, 0) < most_bytes then
            raise exception 'the partition from % on is not wholly expired', first_ns
                using errcode = 'LW003';
        end if;
    end if;
    -- A snapshot that is older than the decision may want the records, and would find none, in
    -- silence, if it had not touched the table yet. All that has expired is decided at once. What
    -- is too much is decided for one partition: who begins after it is gone knows nothing of that.
    select s.leaving_since into decided from {schema}.storage s
    where s.leaving_until >= end_ns and (s.leaving_until <= expired_ns or exists (
        select from {schema}.partition_bounds() b where b.high = s.leaving_until));
    if decided is null then
        decided := pg_current_xact_id();
        update {schema}.storage set leaving_since = decided, leaving_until = greatest(end_ns,
            (select max(b.high) from {schema}.partition_bounds() b where b.high <= expired_ns));
    end if;
    if exists (
        select from pg_stat_activity a
        where a.datid = (select d.oid from pg_database d where d.datname = current_database())
            and a.pid <> pg_backend_pid() and age(a.backend_xmin) >= age(decided::xid)
            and has_table_privilege(a.usesysid, '{schema}.segments', 'select')
    ) then
        return 'waits';
    end if;
    -- Who waits for this lock blocks all who come after: not for longer than they hardly notice.
    begin
        perform set_config('lock_timeout', '100ms', true);
        lock table only {schema}.segments in access exclusive mode;
        execute format('lock table {schema}.%I in access exclusive mode', partition);
    exception when lock_not_available then
        return 'waits';
    end;
    for gone in execute format('select s.pipeline, sum(octet_length(s.body)'
        ' + coalesce(octet_length(s.filter), 0))::int8 as bytes from {schema}.%I s group by 1',
        partition)
    loop
        perform {schema}.change_usage(gone.pipeline, -gone.bytes);
    end loop;
    execute format('drop table {schema}.%I', partition);
    if end_ns > expired_ns then
        update {schema}.storage set leaving_since = null, leaving_until = null;
    end if;
    return 'dropped';
end
$body$
"""

_RIGHTS = """
revoke all on function change_usage(int4, int8), correct_usage(), drop_partition(int8) from public
"""


def upgrade() -> None:
    """Make the table and the functions, and let usage say what the segments take."""
    schema = context.config.attributes["schema"]
    op.execute(_TABLES)
    for text in (_CHANGE_USAGE, _CORRECT_USAGE, _DROP_PARTITION):
        op.execute(text.replace("{schema}", f'"{schema}"'))
    op.execute(_RIGHTS)
    op.execute(f'select "{schema}".correct_usage()')
