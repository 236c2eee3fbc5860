-- Put jobs that are being processed by nobody back into the queue, the second time after two seconds and so on; those
-- that have had max_attempts (0: all of them) fail with the reason, and their messages are archived. Their open
-- attempts end as 'died'. Idempotent; a job that a run is working on, or has ended, is left alone.
create or replace function stats_pipeline.requeue_jobs(job_ids uuid[], max_attempts integer, reason text) returns void
language plpgsql set search_path = '' as $$
declare
    orphans uuid[];
begin
    -- The locks come first, so that the next statement sees what a run that held them has done.
    perform from public.background_job_status as j where j.id = any(job_ids) order by j.id for update;
    orphans := array(
        select j.id
        from public.background_job_status as j
        where j.id = any(job_ids) and j.status = 'processing'
            and not exists (
                select from stats_pipeline.run as r
                where r.run_id = j.run_id and r.outcome is distinct from 'died'
            )
    );

    update stats_pipeline.attempt as a set ended_at = clock_timestamp(), outcome = 'died', error = reason
    where a.job_id = any(orphans) and a.ended_at is null;

    update public.background_job_status as j
    set status = 'failed', completed_at = clock_timestamp(),
        error_message = reason || case
            when max_attempts > 0 then format(' (attempt %s of %s)', j.attempts, max_attempts) else ''
        end
    where j.id = any(orphans) and coalesce(j.attempts, 0) >= max_attempts;

    perform pgmq.archive('stats_update'::text, array_agg(j.msg_id))
    from public.background_job_status as j
    where j.id = any(orphans) and j.status = 'failed' and j.msg_id is not null
    having count(*) > 0;

    update public.background_job_status as j
    set status = 'queued', run_id = null, results = null
    where j.id = any(orphans) and j.status = 'processing';

    perform stats_pipeline.ensure_messages(orphans);
end;
$$;

revoke all on function stats_pipeline.requeue_jobs(uuid[], integer, text) from public, anon, authenticated;
