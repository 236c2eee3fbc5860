-- Enqueue a failed job again.
select public.retry_stats_job(%(job_id)s::uuid) as answer;
