-- Note that a job was asked for again more than twelve hours after it was over, which no caller does who only missed
-- the answer. Once in twelve hours at most; waits for nobody, and of two callers at once both may note it.
create or replace function stats_pipeline.note_repeat(job public.background_job_status) returns void
language sql set search_path = pg_catalog, pg_temp as $$
insert into stats_pipeline.repeated_request (job_id)
select job.id
where job.status in ('completed', 'failed') and job.completed_at < now() - interval '12 hours'
    and not exists (
        select from stats_pipeline.repeated_request as r
        where r.job_id = job.id and r.repeated_at > now() - interval '12 hours'
    );
$$;

revoke all on function stats_pipeline.note_repeat(public.background_job_status) from public, anon, authenticated;
