-- Delete up to `batch` leases that ended longer ago than `days` and whose run no job names any more, with their
-- results. Returns how many; call again until it is 0.
create or replace function stats_pipeline.prune_leases(days integer, batch integer) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    pruned uuid[];
begin
    pruned := array(
        select l.id
        from stats_pipeline.lease as l
        where l.ended_at < now() - make_interval(days => days)
            and not exists (select from public.background_job_status as j where j.run_id = l.run_id)
        order by l.ended_at
        limit batch
    );
    delete from stats_pipeline.function_result as f where f.lease_id = any(pruned);
    delete from stats_pipeline.lease as l where l.id = any(pruned);
    return cardinality(pruned);
end;
$$;

revoke all on function stats_pipeline.prune_leases(integer, integer) from public, anon, authenticated;
