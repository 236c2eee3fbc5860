-- A run's process ends, and another one of the same run is about to start: silence counts from so many seconds on.
create or replace function stats_pipeline.pause_run(dagster_run_id text, seconds integer) returns void
language sql set search_path = pg_catalog, pg_temp as $$
update stats_pipeline.run set seen_at = clock_timestamp() + make_interval(secs => seconds)
where run_id = dagster_run_id and ended_at is null;
$$;

revoke all on function stats_pipeline.pause_run(text, integer) from public, anon, authenticated;
