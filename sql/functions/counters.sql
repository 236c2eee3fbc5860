-- Every counter of /metrics, including measurements not added up yet: the number of observations per bucket, and their
-- sum.
create or replace function stats_pipeline.counters() returns setof stats_pipeline.counter
language sql stable set search_path = pg_catalog, pg_temp as $$
select e.metric, e.label, e.detail, e.le, sum(e.observations)::bigint, sum(e.total)
from (
    select c.* from stats_pipeline.counter as c
    union all
    select m.metric, m.label, m.detail, stats_pipeline.bucket(m.metric, m.value), 1, m.value
    from stats_pipeline.measurement as m
) as e
group by e.metric, e.label, e.detail, e.le;
$$;

revoke all on function stats_pipeline.counters() from public, anon, authenticated;
