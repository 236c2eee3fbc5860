-- Called in the transaction of a stats function, right after it: its success and its due tags commit with its data.
-- Raises SP001, and so rolls back the function's work, if the lease has been taken from the run. This check comes last
-- because its lock would otherwise make a rescue wait for the function.
create or replace function stats_pipeline.complete_function(
    this_lease uuid,
    rpc text,
    tags text[],
    tries integer,
    duration_ms integer
) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform from stats_pipeline.lease as l
    where l.id = this_lease and l.run_id is not null and coalesce(l.outcome, '') not in ('expired', 'revoked')
    for share;
    if not found then
        raise exception using errcode = 'SP001', message = format('lease %s was taken from its run', this_lease);
    end if;

    insert into stats_pipeline.outbox (lease_id, rpc, tag, due_at)
    select this_lease, complete_function.rpc, t.tag, clock_timestamp()
    from unnest(tags) as t (tag);

    perform stats_pipeline.record_function(this_lease, rpc, 'success', tries, duration_ms, null);
    perform stats_pipeline.measure_function(rpc, duration_ms, tries);
end;
$$;

revoke all on function stats_pipeline.complete_function(uuid, text, text[], integer, integer)
from public, anon, authenticated;
