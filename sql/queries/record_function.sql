-- Note how a function of a run is getting on.
select stats_pipeline.record_function(
    %(run_id)s::text, %(rpc)s::text, %(status)s::text, %(attempts)s::integer, %(duration_ms)s::integer,
    %(error)s::text);
