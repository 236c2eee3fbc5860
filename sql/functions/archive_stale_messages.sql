-- Archive messages whose job is over or gone. A message whose job is still to be done is left alone.
create or replace function stats_pipeline.archive_stale_messages(msg_ids bigint[]) returns void
language sql set search_path = '' as $$
select pgmq.archive('stats_update'::text, array_agg(q.msg_id))
from pgmq.q_stats_update as q
left join public.background_job_status as j on j.msg_id = q.msg_id
where q.msg_id = any(msg_ids) and (j.status in ('completed', 'failed') or (j.id is null and q.message ? 'jobId'))
having count(*) > 0;
$$;

revoke all on function stats_pipeline.archive_stale_messages(bigint[]) from public, anon, authenticated;
