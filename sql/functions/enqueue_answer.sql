-- The answer of the public functions, in the format of the app's own routes. `repeated` means that the job already
-- existed; the times say when it was enqueued and when it ended.
create or replace function stats_pipeline.enqueue_answer(
    job public.background_job_status,
    message text,
    is_repeated boolean
) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
select jsonb_build_object(
    'success', true, 'jobId', job.id, 'status', job.status, 'message', message, 'repeated', is_repeated,
    'createdAt', stats_pipeline.readable(job.created_at), 'completedAt', stats_pipeline.readable(job.completed_at));
$$;

revoke all on function stats_pipeline.enqueue_answer(public.background_job_status, text, boolean)
from public, anon, authenticated;
