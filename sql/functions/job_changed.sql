-- Notify listeners whenever a job is created, changes status or makes progress: id, status and version, in the order of
-- commits. The end of a job is counted, and a new job has no attempts.
create or replace function stats_pipeline.job_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform pg_notify('stats_pipeline_jobs', json_build_object(
        'id', new.id, 'status', new.status, 'version', stats_pipeline.job_version(new))::text);
    if tg_op = 'INSERT' then
        delete from stats_pipeline.attempt as a where a.job_id = new.id; -- of an earlier job with this id
    end if;
    if new.status in ('completed', 'failed') and (tg_op = 'INSERT' or old.status <> new.status) then
        perform stats_pipeline.measure_end(new);
    end if;
    return null;
end;
$$;

revoke all on function stats_pipeline.job_changed() from public, anon, authenticated;

create or replace trigger stats_pipeline_job_created
after insert on public.background_job_status
for each row when (new.job_type = 'stats_update')
execute function stats_pipeline.job_changed();

create or replace trigger stats_pipeline_job_changed
after update on public.background_job_status
for each row when (
    new.job_type = 'stats_update'
    and (old.status is distinct from new.status or old.results is distinct from new.results)
)
execute function stats_pipeline.job_changed();
