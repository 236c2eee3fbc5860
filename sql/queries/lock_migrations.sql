-- Let one process at a time migrate; released at the end of the transaction.
select pg_advisory_xact_lock(hashtextextended('stats_pipeline.migrate', 0));
