-- The newest jobs as their listeners know them, for changes that no notification told of.
select j.id, j.status, stats_pipeline.job_version(j) as version
from public.background_job_status as j
where j.job_type = 'stats_update'
order by coalesce(j.created_at, 'infinity') desc, j.id
limit 100;
