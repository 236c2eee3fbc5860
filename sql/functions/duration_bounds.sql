-- The upper bounds of the buckets for durations, in seconds; the last one is infinite. 45 is the duration of a whole
-- refresh before this project, and the timeout of a function.
create or replace function stats_pipeline.duration_bounds(metric text) returns double precision[]
language sql immutable set search_path = pg_catalog, pg_temp as $$
select case metric
    when 'job seconds' then '{0.5,1,2,5,10,20,30,45,60,120,300,900,infinity}'::double precision[]
    when 'function seconds' then '{0.01,0.025,0.05,0.1,0.25,0.5,1,2.5,5,10,20,45,infinity}'::double precision[]
    else '{infinity}'::double precision[]
end;
$$;

revoke all on function stats_pipeline.duration_bounds(text) from public, anon, authenticated;
