-- A row that is stored as 'queued' sends its message in the same transaction. After the insert, because a row skipped
-- by `on conflict do nothing` must not send one. Without a queue the row is stored anyway; it is sent later.
create or replace function stats_pipeline.job_queued() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    begin
        perform stats_pipeline.ensure_messages(array[new.id]);
    exception
        when others then perform stats_pipeline.put_aside('job', new.id::text, sqlerrm, sqlstate);
    end;
    return null;
end;
$$;

revoke all on function stats_pipeline.job_queued() from public, anon, authenticated;

create or replace trigger zz_stats_pipeline_job_queued
after insert on public.background_job_status
for each row when (new.status = 'queued' and new.job_type = 'stats_update')
execute function stats_pipeline.job_queued();
