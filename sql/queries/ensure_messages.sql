-- Give queued jobs a message each.
select stats_pipeline.ensure_messages(%(job_ids)s::uuid[]);
