-- The bucket that a measured value is counted in: the smallest bound that it does not exceed.
create or replace function stats_pipeline.bucket(metric text, value double precision) returns double precision
language sql immutable set search_path = pg_catalog, pg_temp as $$
select min(bound.le)
from unnest(stats_pipeline.duration_bounds(metric)) as bound (le)
where value <= bound.le;
$$;

revoke all on function stats_pipeline.bucket(text, double precision) from public, anon, authenticated;
