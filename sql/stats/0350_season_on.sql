-- The tenant's season that contains a day, with the bounds of the half of it that contains the day; no row when there
-- is none. The half date still belongs to the first half; without one the
-- season is one half. Overlapping seasons: the latest start, then the highest id.
create or replace function stats_pipeline.season_on(target_tenant_id uuid, on_day date)
returns table (
    id integer,
    start_date date,
    end_date date,
    half_start date,
    half_end date
)
language sql
stable
rows 1
set search_path = pg_catalog, pg_temp
as $$
    select
        s.id,
        s.start_date,
        s.end_date,
        case when on_day > s.half_date then s.half_date + 1 else s.start_date end,
        case when on_day <= s.half_date then s.half_date else s.end_date end
    from public.seasons as s
    where s.tenant_id = target_tenant_id and on_day between s.start_date and s.end_date and isfinite(s.start_date)
    order by s.start_date desc, s.id desc
    limit 1;
$$;

revoke all on function stats_pipeline.season_on(uuid, date) from public, anon, authenticated;
grant execute on function stats_pipeline.season_on(uuid, date) to service_role;
