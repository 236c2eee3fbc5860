-- Delete up to `batch` messages that were archived longer ago than `days`. Returns how many; call again until it is 0.
create or replace function stats_pipeline.prune_messages(days integer, batch integer) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    old constant bigint[] := array(
        select a.msg_id
        from pgmq.a_stats_update as a
        where a.archived_at < now() - make_interval(days => days)
        order by a.archived_at
        limit batch
    );
begin
    delete from pgmq.a_stats_update as a where a.msg_id = any(old);
    return cardinality(old);
end;
$$;

revoke all on function stats_pipeline.prune_messages(integer, integer) from public, anon, authenticated;
