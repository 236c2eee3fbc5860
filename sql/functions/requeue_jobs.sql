-- Queue jobs again that are 'processing' without a run, the second time after two seconds and so on. Those that have
-- had max_attempts (0: all of them), or whose rows have rejected this three times, fail with the reason, and their
-- messages are archived. Their open attempts end as 'died'. Idempotent; a job that a run is working on, or has ended,
-- is left alone, and a row that is locked is set aside.
create or replace function stats_pipeline.requeue_jobs(job_ids uuid[], max_attempts integer, reason text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    free uuid[];
    lost uuid[];
    spent uuid[];
    queued uuid[];
begin
    -- The locks come first, so that the next statement sees the work of a run that held them.
    free := array(select j.id from public.background_job_status as j where j.id = any(job_ids) for update skip locked);
    perform stats_pipeline.put_aside_locked(array(
        select j.id from public.background_job_status as j where j.id = any(job_ids) and not j.id = any(free)
    )) where cardinality(free) < cardinality(job_ids);
    lost := array(select o.id from stats_pipeline.orphans(free) as o (id));
    spent := array(
        select j.id
        from public.background_job_status as j
        where j.id = any(lost) and (
            coalesce(j.attempts, 0) >= max_attempts
            or exists (
                select from stats_pipeline.set_aside as s
                where s.what = 'job' and s.key = j.id::text and s.state <> '55P03' and s.tries >= 3
                    and s.detail ->> 'status' = 'queued'
            )
        )
    );

    queued := stats_pipeline.write_jobs(array(
        select jsonb_build_object('id', l.id, 'status', 'queued', 'run_id', null, 'results', null, 'completed_at', null)
        from unnest(lost) as l (id)
        where not l.id = any(spent)
    ));
    perform stats_pipeline.ensure_messages(queued) where queued <> '{}';

    spent := stats_pipeline.write_jobs(array(
        select jsonb_build_object(
            'id', j.id, 'status', 'failed', 'completed_at', clock_timestamp(),
            'error_message', reason || case
                when max_attempts > 0 then format(' (attempt %s of %s)', j.attempts, max_attempts) else ''
            end)
        from public.background_job_status as j
        where j.id = any(spent)
    ));
    perform stats_pipeline.archive_messages(spent);

    update stats_pipeline.attempt as a
    set ended_at = clock_timestamp(), outcome = 'died', error = reason, put_back_as = j.xmin::text
    from public.background_job_status as j
    where a.job_id = any(queued || spent) and a.outcome is null and j.id = a.job_id;
end;
$$;

revoke all on function stats_pipeline.requeue_jobs(uuid[], integer, text) from public, anon, authenticated;
