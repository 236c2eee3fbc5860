-- The run will be silent for a while.
select stats_pipeline.pause_run(%(run_id)s::text, %(seconds)s::integer);
