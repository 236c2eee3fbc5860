-- Delete one batch of old outbox rows.
select stats_pipeline.prune_tags(%(days)s::integer, %(batch)s::integer) as pruned;
