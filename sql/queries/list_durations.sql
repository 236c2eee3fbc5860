-- The durations of the last 50 jobs that ended, oldest first. Impossible times are left out.
select recent.id, recent.status, recent.started_at, recent.seconds
from (
    select
        j.id, j.status, t.started_at, greatest(extract(epoch from t.completed_at - t.started_at), 0)::float as seconds,
        coalesce(j.created_at, 'infinity') as listed_at
    from public.background_job_status as j
    cross join lateral (
        select
            stats_pipeline.readable(j.started_at) as started_at,
            stats_pipeline.readable(j.completed_at) as completed_at
    ) as t
    where j.job_type = 'stats_update' and j.status in ('completed', 'failed')
        and t.started_at is not null and t.completed_at is not null
    order by coalesce(j.created_at, 'infinity') desc, j.id
    limit 50
) as recent
order by recent.listed_at, recent.id desc;
