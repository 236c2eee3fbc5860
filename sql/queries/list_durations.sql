-- How long the last 50 jobs that ended have taken, oldest first.
select recent.id, recent.status, recent.started_at, recent.seconds
from (
    select id, status, started_at, created_at, extract(epoch from completed_at - started_at)::float as seconds
    from public.background_job_status
    where job_type = 'stats_update' and status in ('completed', 'failed')
        and started_at is not null and completed_at is not null
    order by created_at desc
    limit 50
) as recent
order by recent.created_at;
