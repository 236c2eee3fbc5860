-- Enqueue a job, or set it aside.
select stats_pipeline.enqueue_or_put_aside(%(payload)s::jsonb, %(key)s::text) as answer;
