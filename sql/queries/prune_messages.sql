-- Delete one batch of old messages.
select stats_pipeline.prune_messages(%(days)s::integer, %(batch)s::integer) as pruned;
