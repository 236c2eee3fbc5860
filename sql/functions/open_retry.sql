-- The queued or processing retry of a failed job, or null; locks the failed job, so that two calls at once take turns.
-- Raises 22023 if there is no such job or it has not failed.
create or replace function stats_pipeline.open_retry(failed_job_id uuid) returns public.background_job_status
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    failed_status text;
    retry public.background_job_status;
begin
    select j.status into failed_status
    from public.background_job_status as j
    where j.id = failed_job_id
    for update;
    if failed_status is distinct from 'failed' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('retryOf must be the id of a failed job; job %s %s', failed_job_id,
                case when failed_status is null then 'does not exist' else 'is ' || failed_status end);
    end if;
    select j.* into retry
    from public.background_job_status as j
    where j.retry_of = failed_job_id and j.status in ('queued', 'processing')
    order by j.created_at
    limit 1;
    return retry;
end;
$$;

revoke all on function stats_pipeline.open_retry(uuid) from public, anon, authenticated;
