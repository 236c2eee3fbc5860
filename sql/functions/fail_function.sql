-- The last try of a function is over: what was recorded of its tries becomes final.
create or replace function stats_pipeline.fail_function(dagster_run_id text, function_rpc text, problem text)
returns void
language sql set search_path = pg_catalog, pg_temp as $$
with failed as (
    insert into stats_pipeline.function_result as f (run_id, rpc, status, attempts, duration_ms, error)
    select dagster_run_id, function_rpc, 'failed', 1, 0, problem
    where exists (
        select from stats_pipeline.run as r
        where r.run_id = dagster_run_id and function_rpc = any(r.functions)
    )
    on conflict (run_id, rpc) do update
    set status = 'failed', error = excluded.error, recorded_at = now()
    where f.status = 'retrying'
    returning f.rpc, f.duration_ms, f.attempts
)

select stats_pipeline.measure_function(f.rpc, f.duration_ms, f.attempts)
from failed as f;
$$;

revoke all on function stats_pipeline.fail_function(text, text, text) from public, anon, authenticated;
