-- Make the messages of queued jobs visible after `seconds`. A message that another session holds stays as it is.
create or replace function stats_pipeline.show_messages(job_ids uuid[], seconds integer) returns void
language sql set search_path = pg_catalog, pg_temp as $$
select pgmq.set_vt('stats_update'::text, free.msg_id, seconds)
from (
    select q.msg_id
    from public.background_job_status as j
    join pgmq.q_stats_update as q on q.msg_id = j.msg_id and q.message ->> 'jobId' = j.id::text
    where j.id = any(job_ids) and j.status = 'queued'
    for update of q skip locked
) as free;
$$;

revoke all on function stats_pipeline.show_messages(uuid[], integer) from public, anon, authenticated;
