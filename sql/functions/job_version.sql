-- When a job was last written, in microseconds: a later state of a row never has a smaller version.
create or replace function stats_pipeline.job_version(job public.background_job_status) returns bigint
language sql stable set search_path = pg_catalog, pg_temp as $$
select (extract(epoch from least(greatest(coalesce(job.updated_at, job.created_at), 'epoch'), '9999-01-01'))
    * 1000000)::bigint;
$$;

revoke all on function stats_pipeline.job_version(public.background_job_status) from public, anon, authenticated;
