-- The newest jobs, for the CLI and the admin's page.
select
    id, job_type, job_payload, status, started_at, completed_at, error_message, results, created_at, updated_at,
    tenant_id, retry_of, coalesce(attempts, 0) as attempts, run_id, msg_id
from public.background_job_status
where job_type = 'stats_update'
order by created_at desc, id
limit %(newest)s;
