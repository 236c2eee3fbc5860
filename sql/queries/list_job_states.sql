-- The newest jobs in the form of their notifications, for changes whose notification was lost.
select j.id, j.status, stats_pipeline.job_version(j) as version
from public.background_job_status as j
where j.job_type = 'stats_update'
order by coalesce(j.created_at, 'infinity') desc, j.id
limit 100;
