-- Archive messages whose job is over or gone.
select stats_pipeline.archive_stale_messages(%(msg_ids)s::bigint[]);
