-- Delete one batch of old jobs.
select stats_pipeline.prune_jobs(%(days)s::integer, %(batch)s::integer) as pruned;
