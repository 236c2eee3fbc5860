-- The jobs that are not over.
select id, status, run_id, msg_id
from public.background_job_status
where status in ('queued', 'processing') and job_type = 'stats_update';
