-- Why the run of a lease that was just voided did not start.
select stats_pipeline.note_failed_start(%(lease_id)s::uuid, %(cause)s::text);
