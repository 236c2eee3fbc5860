-- A lease that repeats another one resumes where that stopped: its committed functions count as this one's, with the
-- tags still due. The other one was lost, or has failed and is executed again: then `called_again` names the functions
-- that are called, and failures of the others count as well.
create or replace function stats_pipeline.carry_over(this_lease uuid, predecessor uuid, called_again text[])
returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    insert into stats_pipeline.function_result (lease_id, rpc, status, tries, duration_ms, error)
    select l.id, f.rpc, f.status, f.tries, f.duration_ms, f.error
    from stats_pipeline.lease as l
    join stats_pipeline.function_result as f on f.lease_id = predecessor and f.rpc = any(l.functions)
        and not f.rpc = any(called_again)
    where l.id = this_lease and (f.status = 'success' or (f.status = 'failed' and called_again <> '{}'))
    on conflict (lease_id, rpc) do update -- a try of this run that could not claim
    set status = excluded.status, tries = excluded.tries, duration_ms = excluded.duration_ms, error = excluded.error,
        recorded_at = excluded.recorded_at;

    update stats_pipeline.outbox as o set lease_id = this_lease
    where o.lease_id = predecessor;
end;
$$;

revoke all on function stats_pipeline.carry_over(uuid, uuid, text[]) from public, anon, authenticated;
