-- How long to wait after a failure, given the number of earlier ones: a second, two, four and so on to five minutes,
-- plus or minus a quarter, so that callers waiting for the same thing do not all retry together.
create or replace function stats_pipeline.backoff(earlier_failures integer) returns interval
language sql volatile set search_path = pg_catalog, pg_temp as $$
select make_interval(secs => least(300, 2 ^ least(earlier_failures, 20)) * (0.75 + random() / 2));
$$;

revoke all on function stats_pipeline.backoff(integer) from public, anon, authenticated;
