-- Delete up to `batch` runs that ended longer ago than `days` and that no job names any more, with their results.
-- Returns how many; call again until it is 0.
create or replace function stats_pipeline.prune_runs(days integer, batch integer) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    pruned uuid[];
begin
    pruned := array(
        select r.id
        from stats_pipeline.run as r
        where r.ended_at < now() - make_interval(days => days)
            and not exists (select from public.background_job_status as j where j.run_id = r.run_id)
        order by r.ended_at
        limit batch
    );
    delete from stats_pipeline.function_result as f
    using stats_pipeline.run as r
    where r.id = any(pruned) and f.run_id = r.run_id;
    delete from stats_pipeline.run as r where r.id = any(pruned);
    return cardinality(pruned);
end;
$$;

revoke all on function stats_pipeline.prune_runs(integer, integer) from public, anon, authenticated;
