-- A function has failed for good: the record of its tries becomes final.
create or replace function stats_pipeline.fail_function(this_lease uuid, rpc text, problem text)
returns void
language sql set search_path = pg_catalog, pg_temp as $$
with failed as (
    insert into stats_pipeline.function_result as f (lease_id, rpc, status, tries, duration_ms, error)
    select this_lease, fail_function.rpc, 'failed', 1, 0, problem
    where exists (
        select from stats_pipeline.lease as l
        where l.id = this_lease and fail_function.rpc = any(l.functions)
    )
    on conflict (lease_id, rpc) do update
    set status = 'failed', error = excluded.error, recorded_at = now()
    where f.status = 'retrying'
    returning f.rpc, f.duration_ms, f.tries
)

select stats_pipeline.measure_function(f.rpc, f.duration_ms, f.tries)
from failed as f;
$$;

revoke all on function stats_pipeline.fail_function(uuid, text, text) from public, anon, authenticated;
