-- Part of `expire_lease` and `revoke_lease`: the jobs of a claimed lease that has ended without its run are queued
-- again, or fail when they have had max_attempts.
create or replace function stats_pipeline.give_back_jobs(this_lease uuid, max_attempts integer, reason text)
returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform stats_pipeline.withdraw_attempts(this_lease);
    perform stats_pipeline.requeue_jobs(
        array(select a.job_id from stats_pipeline.attempt as a where a.lease_id = this_lease and a.outcome is null),
        max_attempts,
        reason || coalesce(': ' || (
            select f.error from stats_pipeline.function_result as f
            where f.lease_id = this_lease and f.status = 'retrying'
            order by f.recorded_at desc
            limit 1), ''));
    perform pg_notify('stats_pipeline_work', ''); -- the club's other jobs can now be leased
end;
$$;

revoke all on function stats_pipeline.give_back_jobs(uuid, integer, text) from public, anon, authenticated;
