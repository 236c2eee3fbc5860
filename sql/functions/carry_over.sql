-- A run that repeats a dead one goes on where that stopped: what it had computed and committed counts as this run's,
-- with the tags still due.
create or replace function stats_pipeline.carry_over(claimed_run uuid, dead_run_id text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    successor stats_pipeline.run;
begin
    select r.* into successor from stats_pipeline.run as r where r.id = claimed_run;

    insert into stats_pipeline.function_result (run_id, rpc, status, attempts, duration_ms)
    select successor.run_id, f.rpc, 'success', f.attempts, f.duration_ms
    from stats_pipeline.function_result as f
    where f.run_id = dead_run_id and f.status = 'success' and f.rpc = any(successor.functions)
    on conflict (run_id, rpc) do update -- a try of this run's own that could not claim
    set status = excluded.status, attempts = excluded.attempts, duration_ms = excluded.duration_ms, error = null,
        recorded_at = excluded.recorded_at;

    update stats_pipeline.outbox as o set run_id = successor.run_id
    where o.run_id = dead_run_id;
end;
$$;

revoke all on function stats_pipeline.carry_over(uuid, text) from public, anon, authenticated;
