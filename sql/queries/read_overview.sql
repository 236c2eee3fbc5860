-- The head of the admin's page: waiting jobs and since when, and the usual duration of a refresh, from the last 20 that
-- succeeded. Impossible times are left out.
select
    (
        select count(*)
        from public.background_job_status
        where job_type = 'stats_update' and status = 'queued'
    ) as waiting,
    (
        select greatest(extract(epoch from now() - min(stats_pipeline.readable(created_at))), 0)::float
        from public.background_job_status
        where job_type = 'stats_update' and status = 'queued'
    ) as oldest_wait_seconds,
    percentile_cont(0.5) within group (order by recent.waited) as usual_wait_seconds,
    percentile_cont(0.5) within group (order by recent.took) as usual_run_seconds
from (
    select greatest(extract(epoch from t.started - t.created), 0) as waited,
        greatest(extract(epoch from t.completed - t.started), 0) as took
    from public.background_job_status as j
    cross join lateral (
        select
            stats_pipeline.readable(j.created_at) as created,
            stats_pipeline.readable(j.started_at) as started,
            stats_pipeline.readable(j.completed_at) as completed
    ) as t
    where j.job_type = 'stats_update' and j.status = 'completed' and t.started is not null
    order by coalesce(j.created_at, 'infinity') desc, j.id
    limit 20
) as recent;
