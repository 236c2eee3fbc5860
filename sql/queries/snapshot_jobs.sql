-- The inconsistent jobs: queued without a message that becomes visible within ten minutes (another program may have
-- read or deleted it), or 'processing' without a run. Jobs that were set aside and are not due are left out.
select j.id, j.status
from public.background_job_status as j
where j.status = 'queued' and j.job_type = 'stats_update'
    and j.id::text not in (select stats_pipeline.aside('job'))
    and not exists (
        select from pgmq.q_stats_update as q
        where q.msg_id = j.msg_id and q.message ->> 'jobId' = j.id::text and q.vt < now() + interval '10 minutes'
    )
union all
select o.id, 'processing'
from stats_pipeline.orphans(null) as o (id)
where o.id::text not in (select stats_pipeline.aside('job'));
