-- Delete up to `batch` outbox rows that have been due for longer than `days` and are no longer needed: delivered, or
-- with a newer row for the same tag. Returns how many; call again until it is 0.
create or replace function stats_pipeline.prune_tags(days integer, batch integer) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    old constant bigint[] := array(
        select o.id
        from stats_pipeline.outbox as o
        where o.due_at < now() - make_interval(days => days)
            and (
                o.delivered_at is not null
                or exists (select from stats_pipeline.outbox as y where y.tag = o.tag and y.id > o.id)
            )
        order by o.due_at
        limit batch
    );
begin
    delete from stats_pipeline.outbox as o where o.id = any(old);
    return cardinality(old);
end;
$$;

revoke all on function stats_pipeline.prune_tags(integer, integer) from public, anon, authenticated;
