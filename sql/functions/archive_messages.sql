-- Archive the messages of jobs that are over. A message that somebody else holds stays, until the reconciler finds it.
create or replace function stats_pipeline.archive_messages(job_ids uuid[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    free constant bigint[] := array(
        select q.msg_id
        from public.background_job_status as j
        join pgmq.q_stats_update as q on q.msg_id = j.msg_id and q.message ->> 'jobId' = j.id::text
        where j.id = any(job_ids) and j.status in ('completed', 'failed')
        for update of q skip locked
    );
begin
    if free <> '{}' then
        perform pgmq.archive('stats_update'::text, free);
    end if;
end;
$$;

revoke all on function stats_pipeline.archive_messages(uuid[]) from public, anon, authenticated;
