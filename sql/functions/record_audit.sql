-- Record who did what, and from where. Anyone can cause refused tries, so these share rows: of each kind, a network has
-- ten rows in an hour, and an eleventh that counts its further ones. Beyond a thousand rows of refused tries in an
-- hour, one row of each kind counts those of all networks. Two tries at once may share a row, which counts both.
create or replace function stats_pipeline.record_audit(
    action text, outcome text, who text, role text, address text, network text, about text
) returns void
language sql set search_path = pg_catalog, pg_temp as $$
insert into stats_pipeline.audit as a (action, outcome, who, role, address, about, hour, network, number)
select
    g.action, record_audit.outcome, stats_pipeline.audit_text(record_audit.who),
    stats_pipeline.audit_text(record_audit.role),
    case when n.is_many then 'many addresses' else stats_pipeline.audit_text(record_audit.address) end,
    stats_pipeline.audit_text(record_audit.about),
    g.hour, case when n.is_many then 'many' else g.network end, case when n.is_many then 1 else n.number end
from (
    select stats_pipeline.audit_text(record_audit.action) as action,
        case when record_audit.outcome = 'refused' then date_trunc('hour', clock_timestamp(), 'UTC') end as hour,
        case when record_audit.outcome = 'refused' then stats_pipeline.audit_text(record_audit.network) end as network
) as g
cross join lateral (
    select count(*) >= 1000 as is_many,
        case when g.hour is not null
            then least(1 + count(*) filter (where a.network = g.network and a.action = g.action), 11) end as number
    from stats_pipeline.audit as a
    where a.hour = g.hour
) as n
on conflict (hour, network, action, number) where hour is not null do update
set times = a.times + 1, at = clock_timestamp(),
    who = excluded.who, role = excluded.role, address = excluded.address, about = excluded.about;
$$;

revoke all on function stats_pipeline.record_audit(text, text, text, text, text, text, text)
from public, anon, authenticated;
