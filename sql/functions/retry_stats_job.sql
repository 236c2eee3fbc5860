-- Enqueue a failed job again for the same club, as an admin's job with `retryOf`. Two calls create only one retry.
-- Raises 22023 if the job does not exist, has not failed, or its payload cannot be run.
create or replace function public.retry_stats_job(job_id uuid) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    payload jsonb;
begin
    select case when jsonb_typeof(j.job_payload) = 'object'
        then j.job_payload - 'timestamp' || jsonb_strip_nulls(jsonb_build_object('tenantId', j.tenant_id))
        else j.job_payload end into payload
    from public.background_job_status as j
    where j.id = job_id;
    return public.enqueue_stats_job(
        coalesce(payload, '{}')
        || jsonb_build_object('triggeredBy', 'admin', 'requestId', gen_random_uuid(), 'retryOf', job_id));
end;
$$;

revoke all on function public.retry_stats_job(uuid) from public, anon, authenticated;
grant execute on function public.retry_stats_job(uuid) to service_role;
