-- The newest jobs, for the CLI and the admin's page.
select
    j.id, j.job_type, j.job_payload, j.status, stats_pipeline.readable(j.started_at) as started_at,
    stats_pipeline.readable(j.completed_at) as completed_at, j.error_message, j.results,
    stats_pipeline.readable(j.created_at) as created_at, stats_pipeline.readable(j.updated_at) as updated_at,
    j.tenant_id, j.retry_of, coalesce(j.attempts, 0) as attempts, j.run_id, j.msg_id,
    stats_pipeline.oddities(j) as oddities
from public.background_job_status as j
where j.job_type = 'stats_update'
order by coalesce(j.created_at, 'infinity') desc, j.id
limit %(newest)s;
