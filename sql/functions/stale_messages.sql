-- Those of these messages that name a job but are not the message of an unfinished one. Null: of all messages.
create or replace function stats_pipeline.stale_messages(msg_ids bigint[]) returns setof bigint
language sql stable set search_path = pg_catalog, pg_temp as $$
select q.msg_id
from pgmq.q_stats_update as q
where (msg_ids is null or q.msg_id = any(msg_ids)) and stats_pipeline.names_job(q.message)
    and not exists (
        select from public.background_job_status as j
        where j.id = stats_pipeline.to_uuid(q.message -> 'jobId') and j.msg_id = q.msg_id
            and j.status in ('queued', 'processing') and j.job_type = 'stats_update'
    );
$$;

revoke all on function stats_pipeline.stale_messages(bigint[]) from public, anon, authenticated;
