-- Put jobs that nobody works on back into the queue.
select stats_pipeline.requeue_jobs(%(job_ids)s::uuid[], %(max_attempts)s::integer, %(reason)s::text);
