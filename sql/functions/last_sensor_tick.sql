-- When Dagster's daemon last evaluated a sensor; null in a database without Dagster's storage or without a tick.
create or replace function stats_pipeline.last_sensor_tick() returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    last_tick timestamptz;
begin
    if to_regclass('dagster.job_ticks') is not null then
        select t."timestamp" at time zone 'UTC' into last_tick
        from dagster.job_ticks as t
        where t.type = 'SENSOR'
        order by t.id desc
        limit 1;
    end if;
    return last_tick;
end;
$$;

revoke all on function stats_pipeline.last_sensor_tick() from public, anon, authenticated;
