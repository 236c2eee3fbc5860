-- The head of the admin's page: what waits and since when, and what a refresh usually takes, from the last 20 that
-- succeeded.
select
    (
        select count(*)
        from public.background_job_status
        where job_type = 'stats_update' and status = 'queued'
    ) as waiting,
    (
        select extract(epoch from now() - min(created_at))::float
        from public.background_job_status
        where job_type = 'stats_update' and status = 'queued'
    ) as oldest_wait_seconds,
    percentile_cont(0.5) within group (order by extract(epoch from recent.started_at - recent.created_at))
        as usual_wait_seconds,
    percentile_cont(0.5) within group (order by extract(epoch from recent.completed_at - recent.started_at))
        as usual_run_seconds
from (
    select created_at, started_at, completed_at
    from public.background_job_status
    where job_type = 'stats_update' and status = 'completed' and started_at is not null
    order by created_at desc
    limit 20
) as recent;
