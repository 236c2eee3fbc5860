-- Delete up to `batch` jobs that ended longer ago than `days`, with their attempts, and the requests they were known
-- by. Returns how many; call again until it is 0.
create or replace function stats_pipeline.prune_jobs(days integer, batch integer) returns integer
language plpgsql set search_path = '' as $$
declare
    pruned uuid[];
begin
    pruned := array(
        select j.id
        from public.background_job_status as j
        where j.job_type = 'stats_update' and j.status in ('completed', 'failed')
            and coalesce(j.completed_at, j.updated_at) < now() - make_interval(days => days)
        order by j.created_at
        limit batch
        for update skip locked
    );
    delete from public.background_job_status as j where j.id = any(pruned);
    return cardinality(pruned);
end;
$$;

revoke all on function stats_pipeline.prune_jobs(integer, integer) from public, anon, authenticated;
