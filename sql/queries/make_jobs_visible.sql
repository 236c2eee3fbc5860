-- Whatever keeps a waiting job from being handed out now, such as the pause before its next attempt, is over.
select pgmq.set_vt('stats_update'::text, q.msg_id, 0)
from pgmq.q_stats_update as q
join public.background_job_status as j on j.msg_id = q.msg_id
where j.status = 'queued' and q.vt > clock_timestamp()
    and not exists (select from stats_pipeline.run as r where j.id = any(r.job_ids) and r.ended_at is null);
