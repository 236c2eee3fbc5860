-- Called in the transaction of a stats function, right after it: its success and its due tags commit with its data.
-- Raises SP001, and so undoes the function's work, if the run has been replaced meanwhile. The fence is last because
-- the lock it takes would otherwise make a rescue wait for the function.
create or replace function stats_pipeline.complete_function(
    dagster_run_id text,
    function_rpc text,
    tags text[],
    tries integer,
    elapsed_ms integer
) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform from stats_pipeline.run as r
    where r.run_id = dagster_run_id and r.outcome is distinct from 'died'
    for share;
    if not found then
        raise exception using errcode = 'SP001', message = format('run %s has been replaced', dagster_run_id);
    end if;

    insert into stats_pipeline.outbox (run_id, rpc, tag, due_at)
    select dagster_run_id, function_rpc, t.tag, clock_timestamp()
    from unnest(tags) as t (tag);

    perform stats_pipeline.record_function(dagster_run_id, function_rpc, 'success', tries, elapsed_ms, null);
    perform stats_pipeline.measure_function(function_rpc, elapsed_ms, tries);
end;
$$;

revoke all on function stats_pipeline.complete_function(text, text, text[], integer, integer)
from public, anon, authenticated;
