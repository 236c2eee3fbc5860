-- Delete one batch of old runs.
select stats_pipeline.prune_runs(%(days)s::integer, %(batch)s::integer) as pruned;
