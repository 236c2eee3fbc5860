-- Allow one process at a time to migrate; released at the end of the transaction.
select pg_advisory_xact_lock(hashtextextended('stats_pipeline.migrate', 0));
