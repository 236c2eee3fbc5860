-- For /metrics: the duration of a stats function in a run, and the number of tries before this one.
create or replace function stats_pipeline.measure_function(rpc text, duration_ms integer, tries integer) returns void
language sql set search_path = pg_catalog, pg_temp as $$
insert into stats_pipeline.measurement (metric, label, value)
select m.metric, rpc, m.value
from (values ('function seconds', duration_ms / 1000.0), ('function retries', tries - 1)) as m (metric, value)
where m.metric = 'function seconds' or m.value > 0;
$$;

revoke all on function stats_pipeline.measure_function(text, integer, integer) from public, anon, authenticated;
