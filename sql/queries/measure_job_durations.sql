-- How many jobs took how long from start to end, per bucket: bucket 0 is up to the first bound, and so on.
select
    j.status as label,
    width_bucket(extract(epoch from j.completed_at - j.started_at)::float, %(bounds)s::float[]) as bucket,
    count(*) as observations,
    sum(extract(epoch from j.completed_at - j.started_at))::float as seconds
from public.background_job_status as j
where j.job_type = 'stats_update' and j.completed_at is not null and j.started_at is not null
group by 1, 2;
