-- Make one message of each queued job visible, after two seconds for every attempt but the first: its own, or a new one
-- if that is gone. Idempotent; a row that is locked, or that rejects the id of its message, is set aside.
create or replace function stats_pipeline.ensure_messages(job_ids uuid[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    free uuid[];
    without_message uuid;
begin
    -- The locks come first, so that of two callers the second one sees the messages of the first one.
    free := array(
        select j.id
        from public.background_job_status as j
        where j.id = any(job_ids) and j.status = 'queued'
        for update skip locked
    );
    perform stats_pipeline.show_messages(array_agg(j.id), d.seconds)
    from public.background_job_status as j
    cross join lateral (select 2 * (least(greatest(coalesce(j.attempts, 0), 1), 30) - 1) as seconds) as d
    where j.id = any(free)
    group by d.seconds;

    for without_message in
        select j.id
        from public.background_job_status as j
        where j.id = any(free) and j.id::text not in (select stats_pipeline.aside('job')) and not exists (
            select from pgmq.q_stats_update as q
            where q.msg_id = j.msg_id and q.message ->> 'jobId' = j.id::text
        )
    loop
        begin
            update public.background_job_status as j
            set msg_id = (
                select s.id from pgmq.send('stats_update'::text, jsonb_build_object('jobId', j.id), 0) as s (id)
            )
            where j.id = without_message;
        exception
            when others then perform stats_pipeline.put_aside('job', without_message::text, sqlerrm, sqlstate);
        end;
    end loop;

    perform pg_notify('stats_pipeline_work', '');
end;
$$;

revoke all on function stats_pipeline.ensure_messages(uuid[]) from public, anon, authenticated;
