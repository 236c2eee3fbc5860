-- The only door through which the calendar enters: the session's date, unless the session setting
-- stats_pipeline.today (YYYY-MM-DD) fixes another one.
create or replace function stats_pipeline.stats_today()
returns date
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(nullif(current_setting('stats_pipeline.today', true), '')::date, current_date);
$$;

revoke all on function stats_pipeline.stats_today() from public, anon, authenticated;
grant execute on function stats_pipeline.stats_today() to service_role;
