-- Record that a job was requested again more than twelve hours after it had ended, which is too late for a caller that
-- only missed the answer. At most once in twelve hours. Waits for no lock; two callers at once may both record it.
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
