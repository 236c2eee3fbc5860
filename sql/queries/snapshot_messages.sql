-- Every message on the queue, with the status of its job if it has one.
select q.msg_id, jsonb_typeof(q.message) = 'object' and q.message ? 'jobId' as names_job, j.status as job_status
from pgmq.q_stats_update as q
left join public.background_job_status as j on j.msg_id = q.msg_id;
