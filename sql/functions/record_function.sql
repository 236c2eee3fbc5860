-- Remember how a function of a run is getting on. A success is never taken back by a late report of a failed try.
create or replace function stats_pipeline.record_function(
    dagster_run_id text,
    function_rpc text,
    new_status text,
    tries integer,
    elapsed_ms integer,
    problem text
) returns void
language sql set search_path = pg_catalog, pg_temp as $$
insert into stats_pipeline.function_result as f (run_id, rpc, status, attempts, duration_ms, error)
values (dagster_run_id, function_rpc, new_status, tries, elapsed_ms, problem)
on conflict (run_id, rpc) do update
set status = excluded.status, attempts = excluded.attempts, duration_ms = excluded.duration_ms,
    error = excluded.error, recorded_at = now()
where f.status <> 'success';
$$;

revoke all on function stats_pipeline.record_function(text, text, text, integer, integer, text)
from public, anon, authenticated;
