-- Bring a run's jobs up to what has been recorded.
select stats_pipeline.settle_run(%(run_id)s::text, %(cache_configured)s::boolean, %(deadline)s::integer);
