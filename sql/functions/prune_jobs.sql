-- Delete up to `batch` jobs that ended longer ago than `days`, with their attempts and requests. A row that is locked,
-- or that a constraint of the app protects, is left. Returns how many; call again until it is 0.
create or replace function stats_pipeline.prune_jobs(days integer, batch integer) returns integer
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '250ms' as $$
declare
    old uuid[];
    one uuid;
    pruned integer := 0;
begin
    old := array(
        select j.id
        from public.background_job_status as j
        where j.job_type = 'stats_update' and j.status in ('completed', 'failed')
            and coalesce(j.completed_at, j.created_at, '-infinity') < now() - make_interval(days => days)
            and j.id::text not in (select stats_pipeline.aside('job'))
        order by coalesce(j.completed_at, j.created_at, '-infinity')
        limit batch
        for update skip locked
    );
    begin
        delete from public.background_job_status as j where j.id = any(old);
        get diagnostics pruned = row_count;
        set constraints all immediate;
    exception
        when others then
            pruned := 0;
            foreach one in array old loop
                begin
                    delete from public.background_job_status as j where j.id = one;
                    set constraints all immediate;
                    pruned := pruned + 1;
                exception
                    when others then
                        perform stats_pipeline.put_aside('job', one::text, 'Cannot be deleted: ' || sqlerrm, sqlstate);
                end;
            end loop;
    end;
    return pruned;
end;
$$;

revoke all on function stats_pipeline.prune_jobs(integer, integer) from public, anon, authenticated;
