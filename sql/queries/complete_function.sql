-- The function's success and its due tags, in the function's transaction.
select stats_pipeline.complete_function(
    %(run_id)s::text, %(rpc)s::text, %(tags)s::text[], %(attempts)s::integer, %(duration_ms)s::integer);
