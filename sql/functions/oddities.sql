-- The oddities of a job's row, in words: values that no program of ours writes, and how they are interpreted.
create or replace function stats_pipeline.oddities(job public.background_job_status) returns text[]
language sql stable set search_path = pg_catalog, pg_temp as $$
select array_remove(array[
    case when stats_pipeline.readable(job.created_at) is null then 'created_at is no usable time' end,
    case when job.updated_at is not null and stats_pipeline.readable(job.updated_at) is null then
        'updated_at is no usable time' end,
    case when job.started_at is not null and stats_pipeline.readable(job.started_at) is null then
        'started_at is no usable time' end,
    case when job.completed_at is not null and stats_pipeline.readable(job.completed_at) is null then
        'completed_at is no usable time' end,
    case when job.completed_at < job.started_at then 'it ended before it started' end,
    case when jsonb_typeof(job.job_payload) <> 'object' then 'job_payload is no object' end,
    case when jsonb_typeof(job.results) <> 'object' then 'results is no object' end,
    case when job.attempts < 0 then 'attempts is negative' end
], null);
$$;

revoke all on function stats_pipeline.oddities(public.background_job_status) from public, anon, authenticated;
