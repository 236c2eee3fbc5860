-- Give up on a run that is dead, unless it has been seen since.
select stats_pipeline.abandon_run(
    %(run_id)s::text, %(not_seen_since)s::timestamptz, %(max_attempts)s::integer, %(reason)s::text) as abandoned;
