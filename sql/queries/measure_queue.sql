-- The queue now: messages, waiting jobs and since when, tags the app has not confirmed, and everything set aside.
select
    (select count(*) from pgmq.q_stats_update) as messages,
    count(*) as waiting,
    coalesce(greatest(extract(epoch from clock_timestamp() - min(stats_pipeline.readable(j.created_at))), 0), 0)::float
        as oldest_wait_seconds,
    (select count(*) from stats_pipeline.outbox where delivered_at is null) as undelivered_tags,
    (select count(*) from stats_pipeline.set_aside) as set_aside
from public.background_job_status as j
where j.job_type = 'stats_update' and j.status = 'queued';
