-- Take back a lease that no run has claimed and none will. Its jobs are handed out again, later each time that happens
-- to them, because a run that cannot even start does not start any sooner; with a problem given they fail with it
-- instead. Idempotent; a lease that has been claimed is left alone.
create or replace function stats_pipeline.void_lease(lease_id uuid, problem text) returns void
language plpgsql set search_path = '' as $$
declare
    void_jobs uuid[];
begin
    update stats_pipeline.run as r set ended_at = clock_timestamp(), outcome = 'expired'
    where r.id = lease_id and r.run_id is null and r.ended_at is null
    returning r.job_ids into void_jobs;

    update public.background_job_status as j
    set status = 'failed', completed_at = clock_timestamp(), error_message = problem
    where j.id = any(void_jobs) and j.status = 'queued' and problem is not null;

    perform pgmq.archive('stats_update'::text, array_agg(j.msg_id))
    from public.background_job_status as j
    where j.id = any(void_jobs) and j.status = 'failed'
    having count(*) > 0;

    perform pgmq.set_vt('stats_update'::text, j.msg_id, extract(epoch from stats_pipeline.backoff(v.earlier))::integer)
    from public.background_job_status as j
    cross join lateral (
        select count(*)::integer - 1 as earlier
        from stats_pipeline.run as r
        where r.outcome = 'expired' and j.id = any(r.job_ids)
    ) as v
    where j.id = any(void_jobs) and j.status = 'queued';
end;
$$;

revoke all on function stats_pipeline.void_lease(uuid, text) from public, anon, authenticated;
