-- One job by its id.
select
    id, job_type, job_payload, status, started_at, completed_at, error_message, results, created_at, updated_at,
    tenant_id, retry_of, coalesce(attempts, 0) as attempts, run_id, msg_id
from public.background_job_status
where id = %(job_id)s and job_type = 'stats_update';
