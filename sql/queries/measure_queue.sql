-- The queue now: messages, jobs that wait and since when, and tags the app has not taken.
select
    (select count(*) from pgmq.q_stats_update) as messages,
    count(*) as waiting,
    coalesce(extract(epoch from clock_timestamp() - min(j.created_at)), 0)::float as oldest_wait_seconds,
    (select count(*) from stats_pipeline.outbox where delivered_at is null) as undelivered_tags
from public.background_job_status as j
where j.job_type = 'stats_update' and j.status = 'queued';
