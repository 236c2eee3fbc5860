-- A function of a run has failed for good.
select stats_pipeline.fail_function(%(run_id)s::text, %(rpc)s::text, %(error)s::text);
