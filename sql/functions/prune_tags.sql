-- Delete up to `batch` outbox rows that have been due for longer than `days` and are not needed any more: delivered, or
-- with a younger row that stands for the same tag. Returns how many; call again until it is 0.
create or replace function stats_pipeline.prune_tags(days integer, batch integer) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    pruned integer;
begin
    delete from stats_pipeline.outbox as o
    where o.id in (
        select old.id
        from stats_pipeline.outbox as old
        where old.due_at < now() - make_interval(days => days)
            and (
                old.delivered_at is not null
                or exists (select from stats_pipeline.outbox as y where y.tag = old.tag and y.id > old.id)
            )
        order by old.id
        limit batch
    );
    get diagnostics pruned = row_count;
    return pruned;
end;
$$;

revoke all on function stats_pipeline.prune_tags(integer, integer) from public, anon, authenticated;
