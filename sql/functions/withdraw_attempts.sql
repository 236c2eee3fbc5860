-- End a run's attempts at jobs that somebody else has changed meanwhile: what was written there stays, and what is
-- still 'processing' is an orphan.
create or replace function stats_pipeline.withdraw_attempts(dagster_run_id text) returns void
language sql set search_path = pg_catalog, pg_temp as $$
update stats_pipeline.attempt as a
set ended_at = clock_timestamp(), outcome = 'withdrawn', error = 'The row was changed by somebody else'
where a.run_id = dagster_run_id and a.outcome is null
    and a.job_id not in (select j.id from stats_pipeline.jobs_of_run(dagster_run_id) as j);
$$;

revoke all on function stats_pipeline.withdraw_attempts(text) from public, anon, authenticated;
