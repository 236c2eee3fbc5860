-- How long to wait after so many failures before this one: a second, two, four and so on to five minutes, give or take
-- a quarter, so that many waiting for the same thing do not come back together.
create or replace function stats_pipeline.backoff(earlier_failures integer) returns interval
language sql volatile set search_path = pg_catalog, pg_temp as $$
select make_interval(secs => least(300, 2 ^ least(earlier_failures, 20)) * (0.75 + random() / 2));
$$;

revoke all on function stats_pipeline.backoff(integer) from public, anon, authenticated;
