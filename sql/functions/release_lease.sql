-- End a lease whose work is recorded: 'succeeded' or 'failed', or 'empty' if there was no job left to do. The club's
-- waiting jobs can be leased from now on. Null if the lease had already ended.
create or replace function stats_pipeline.release_lease(this_lease uuid, how text) returns stats_pipeline.lease
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    released stats_pipeline.lease;
begin
    update stats_pipeline.lease as l set ended_at = clock_timestamp(), outcome = how
    where l.id = this_lease and l.ended_at is null
    returning l.* into released;
    if found then
        perform pg_notify('stats_pipeline_work', '');
    end if;
    return released;
end;
$$;

revoke all on function stats_pipeline.release_lease(uuid, text) from public, anon, authenticated;
