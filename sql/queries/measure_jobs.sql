-- Unfinished jobs, by status and trigger.
select j.status, stats_pipeline.trigger_of(j.job_payload) as trigger, count(*) as jobs
from public.background_job_status as j
where j.job_type = 'stats_update' and j.status in ('queued', 'processing')
group by 1, 2;
