-- Archive the messages of jobs that have ended.
create or replace function stats_pipeline.archive_messages(job_ids uuid[]) returns void
language sql set search_path = pg_catalog, pg_temp as $$
select stats_pipeline.archive_ids(array(
    select q.msg_id
    from public.background_job_status as j
    join pgmq.q_stats_update as q on q.msg_id = j.msg_id and q.message ->> 'jobId' = j.id::text
    where j.id = any(job_ids) and j.status in ('completed', 'failed')
));
$$;

revoke all on function stats_pipeline.archive_messages(uuid[]) from public, anon, authenticated;
