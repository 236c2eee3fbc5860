-- A run that repeats exactly the jobs of the tenant's last run, which died, goes on where that one stopped: what it
-- had computed and committed counts as this run's, with the tags still due. With any other job in the set newer data
-- may have come in, and everything is computed again.
create or replace function stats_pipeline.carry_over(claimed_run uuid) returns void
language plpgsql set search_path = '' as $$
declare
    successor stats_pipeline.run;
    predecessor stats_pipeline.run;
begin
    select r.* into successor from stats_pipeline.run as r where r.id = claimed_run;
    select r.* into predecessor
    from stats_pipeline.run as r
    where r.tenant_key = successor.tenant_key and r.id <> successor.id and r.claimed_at is not null
    order by r.claimed_at desc
    limit 1;
    if not found or predecessor.outcome is distinct from 'died'
        or not (predecessor.job_ids <@ successor.job_ids and predecessor.job_ids @> successor.job_ids)
    then
        return;
    end if;

    insert into stats_pipeline.function_result (run_id, rpc, status, attempts, duration_ms)
    select successor.run_id, f.rpc, 'success', f.attempts, f.duration_ms
    from stats_pipeline.function_result as f
    where f.run_id = predecessor.run_id and f.status = 'success' and f.rpc = any(successor.functions)
    on conflict (run_id, rpc) do update -- a try of this run's own that could not claim
    set status = excluded.status, attempts = excluded.attempts, duration_ms = excluded.duration_ms, error = null,
        recorded_at = excluded.recorded_at;

    update stats_pipeline.outbox as o set run_id = successor.run_id
    where o.run_id = predecessor.run_id;
end;
$$;

revoke all on function stats_pipeline.carry_over(uuid) from public, anon, authenticated;
