-- A deleted job frees its request.
create or replace function stats_pipeline.job_deleted() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    delete from stats_pipeline.job_request as r where r.job_id = old.id;
    delete from stats_pipeline.repeated_request as r where r.job_id = old.id;
    return null;
end;
$$;

revoke all on function stats_pipeline.job_deleted() from public, anon, authenticated;

create or replace trigger stats_pipeline_job_deleted
after delete on public.background_job_status
for each row execute function stats_pipeline.job_deleted();
