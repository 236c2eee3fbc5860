-- Record the progress of a function of a lease. A late report of a failed try never replaces a success.
create or replace function stats_pipeline.record_function(
    this_lease uuid,
    rpc text,
    status text,
    tries integer,
    duration_ms integer,
    problem text
) returns void
language sql set search_path = pg_catalog, pg_temp as $$
insert into stats_pipeline.function_result as f (lease_id, rpc, status, tries, duration_ms, error)
values (this_lease, rpc, status, tries, duration_ms, problem)
on conflict (lease_id, rpc) do update
set status = excluded.status, tries = excluded.tries, duration_ms = excluded.duration_ms,
    error = excluded.error, recorded_at = now()
where f.status <> 'success';
$$;

revoke all on function stats_pipeline.record_function(uuid, text, text, integer, integer, text)
from public, anon, authenticated;
