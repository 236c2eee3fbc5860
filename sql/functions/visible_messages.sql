-- The messages nobody holds a lease on, each with the job it stands for, if there is one.
create or replace function stats_pipeline.visible_messages()
returns table (msg_id bigint, enqueued_at timestamptz, message jsonb, names_job boolean, job_id uuid)
language sql stable set search_path = '' as $$
select q.msg_id, q.enqueued_at, q.message, jsonb_typeof(q.message) = 'object' and q.message ? 'jobId', j.id
from pgmq.q_stats_update as q
left join public.background_job_status as j on j.msg_id = q.msg_id
where q.vt <= clock_timestamp();
$$;

revoke all on function stats_pipeline.visible_messages() from public, anon, authenticated;
