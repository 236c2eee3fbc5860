-- Give up on an open run that is dead: its jobs are queued again, or fail when they have had max_attempts, and what it
-- has left connected is cut off. Idempotent; a run that has been seen since `not_seen_since` is left alone and false is
-- returned. The run is over even if one of its jobs cannot be written now: that one is an orphan, for the reconciler.
create or replace function stats_pipeline.abandon_run(
    dagster_run_id text,
    not_seen_since timestamptz,
    max_attempts integer,
    reason text
) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform stats_pipeline.cut_off_run(r.run_id) -- first: its sessions may hold the lock that the update needs
    from stats_pipeline.run as r
    where r.run_id = dagster_run_id and r.ended_at is null and r.seen_at <= not_seen_since;

    update stats_pipeline.run as r set ended_at = clock_timestamp(), outcome = 'died'
    where r.run_id = dagster_run_id and r.ended_at is null and r.seen_at <= not_seen_since;
    if not found then
        return false;
    end if;

    perform stats_pipeline.withdraw_attempts(dagster_run_id);
    perform stats_pipeline.requeue_jobs(
        array(select a.job_id from stats_pipeline.attempt as a where a.run_id = dagster_run_id and a.outcome is null),
        max_attempts,
        reason || coalesce(': ' || (
            select f.error from stats_pipeline.function_result as f
            where f.run_id = dagster_run_id and f.status = 'retrying'
            order by f.recorded_at desc
            limit 1), ''));
    perform pg_notify('stats_pipeline_work', ''); -- the club's other jobs can be leased now
    return true;
end;
$$;

revoke all on function stats_pipeline.abandon_run(text, timestamptz, integer, text) from public, anon, authenticated;
