-- Put jobs that are being processed by nobody back into the queue, the second time after two seconds and so on; those
-- that have had max_attempts (0: all of them) fail with the reason, and their messages are archived.
create or replace function stats_pipeline.requeue_jobs(job_ids uuid[], max_attempts integer, reason text) returns void
language plpgsql set search_path = '' as $$
begin
    update public.background_job_status as j
    set status = 'failed', completed_at = clock_timestamp(),
        error_message = reason || case
            when max_attempts > 0 then format(' (attempt %s of %s)', j.attempts, max_attempts) else ''
        end
    where j.id = any(job_ids) and j.status = 'processing' and coalesce(j.attempts, 0) >= max_attempts;

    perform pgmq.archive('stats_update'::text, array_agg(j.msg_id))
    from public.background_job_status as j
    where j.id = any(job_ids) and j.status = 'failed' and j.msg_id is not null
    having count(*) > 0;

    update public.background_job_status as j
    set status = 'queued', run_id = null, results = null
    where j.id = any(job_ids) and j.status = 'processing';

    perform stats_pipeline.ensure_messages(
        array(select j.id from public.background_job_status as j where j.id = any(job_ids) and j.status = 'queued'));
end;
$$;

revoke all on function stats_pipeline.requeue_jobs(uuid[], integer, text) from public, anon, authenticated;
