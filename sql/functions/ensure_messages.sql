-- Give queued jobs a visible message each: the one they have, two seconds later for every attempt but the first, or a
-- new one if it is gone. Idempotent.
create or replace function stats_pipeline.ensure_messages(job_ids uuid[]) returns void
language plpgsql set search_path = '' as $$
begin
    -- The locks come first, so that of two callers the second one sees what the first one has sent.
    perform from public.background_job_status as j where j.id = any(job_ids) order by j.id for update;

    perform pgmq.set_vt('stats_update'::text, q.msg_id, 2 * greatest(coalesce(j.attempts, 0) - 1, 0))
    from public.background_job_status as j
    join pgmq.q_stats_update as q on q.msg_id = j.msg_id
    where j.id = any(job_ids) and j.status = 'queued';

    update public.background_job_status as j
    set msg_id = (select s.id from pgmq.send('stats_update'::text, jsonb_build_object('jobId', j.id), 0) as s (id))
    where j.id = any(job_ids) and j.status = 'queued'
        and not exists (select from pgmq.q_stats_update as q where q.msg_id = j.msg_id);

    perform pg_notify('stats_pipeline_work', '');
end;
$$;

revoke all on function stats_pipeline.ensure_messages(uuid[]) from public, anon, authenticated;
