-- The answer of the public functions, in the shape the app's own routes use.
create or replace function stats_pipeline.enqueue_answer(job public.background_job_status, message text) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
select jsonb_build_object('success', true, 'jobId', job.id, 'status', job.status, 'message', message);
$$;

revoke all on function stats_pipeline.enqueue_answer(public.background_job_status, text)
from public, anon, authenticated;
