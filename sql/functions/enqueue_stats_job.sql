-- Door a: `supabase.rpc('enqueue_stats_job', { payload })`. Row and message are created together or not at all. A
-- requestId the tenant has used before, or a job that is being retried already, returns that job and enqueues nothing.
-- Raises 22023 with a message that names the field.
create or replace function public.enqueue_stats_job(payload jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
    problem text := stats_pipeline.payload_problem(payload);
    tenant uuid;
    retried uuid;
    job public.background_job_status;
begin
    if problem is not null then
        raise exception using errcode = 'invalid_parameter_value', message = problem;
    end if;
    tenant := stats_pipeline.to_uuid(payload -> 'tenantId');
    retried := stats_pipeline.to_uuid(payload -> 'retryOf');

    -- Two callers with one requestId take turns, so that the second one finds the first one's job.
    perform pg_advisory_xact_lock(hashtextextended(
        'stats_pipeline.request:' || stats_pipeline.tenant_key(tenant) || ':' || (payload ->> 'requestId'), 0));
    select j.* into job
    from stats_pipeline.job_request as r
    join public.background_job_status as j on j.id = r.job_id
    where r.tenant_key = stats_pipeline.tenant_key(tenant) and r.request_id = payload ->> 'requestId';
    if found then
        return stats_pipeline.enqueue_answer(job, 'This request has been enqueued before');
    end if;

    if retried is not null then
        job := stats_pipeline.open_retry(retried);
        if job.id is not null then
            return stats_pipeline.enqueue_answer(job, 'This job is being retried already');
        end if;
    end if;

    insert into public.background_job_status (job_payload, status)
    values (jsonb_build_object('timestamp', now()) || jsonb_strip_nulls(payload), 'queued')
    returning * into job;
    return stats_pipeline.enqueue_answer(job, 'Stats job enqueued');
end;
$$;

revoke all on function public.enqueue_stats_job(jsonb) from public, anon, authenticated;
grant execute on function public.enqueue_stats_job(jsonb) to service_role;
