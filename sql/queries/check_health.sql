-- The state of queue and cache for the health page.
select
    (
        select count(*)
        from public.background_job_status
        where job_type = 'stats_update' and status = 'queued'
    ) as waiting,
    to_regclass('pgmq.q_stats_update') is not null as has_queue,
    (select count(*) from stats_pipeline.outbox where delivered_at is null) as undelivered_tags,
    (select failing_since from stats_pipeline.endpoint where url = %(route)s) as app_failing_since,
    (select count(*) from stats_pipeline.set_aside) as set_aside;
