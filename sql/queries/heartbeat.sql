-- The run is alive.
select stats_pipeline.heartbeat(%(run_id)s::text, %(lease_seconds)s::integer) as is_open;
