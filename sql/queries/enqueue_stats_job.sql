-- Enqueue a job through the same door as the app.
select public.enqueue_stats_job(%(payload)s::jsonb) as answer;
