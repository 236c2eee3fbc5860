-- Entry point a: `supabase.rpc('enqueue_stats_job', { payload })`. Row and message are created together or not at all.
-- A requestId that the club has used before returns its job, a retry of a job that is being retried returns that retry,
-- and neither enqueues anything. Raises 22023 with a message that names the field, also for a club that does not exist.
create or replace function public.enqueue_stats_job(payload jsonb) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    problem text := stats_pipeline.payload_problem(payload);
    retried uuid;
    job public.background_job_status;
begin
    if problem is not null then
        raise exception using errcode = 'invalid_parameter_value', message = problem;
    end if;
    retried := stats_pipeline.to_uuid(payload -> 'retryOf');

    job := stats_pipeline.requested_job(payload);
    if job.id is null and retried is not null then
        job := stats_pipeline.open_retry(retried);
        if job.id is not null then
            return stats_pipeline.enqueue_answer(job, 'This job is being retried already', true);
        end if;
    end if;

    if job.id is null then
        problem := stats_pipeline.tenant_problem(stats_pipeline.club(null, payload, stats_pipeline.default_tenant()));
        if problem is not null then
            raise exception using errcode = 'invalid_parameter_value', message = problem;
        end if;
        insert into public.background_job_status (job_payload, status)
        values (jsonb_build_object('timestamp', now()) || jsonb_strip_nulls(payload), 'queued')
        on conflict (id) do nothing
        returning * into job;
        if found then
            return stats_pipeline.enqueue_answer(job, 'Stats job enqueued', false);
        end if;
        job := stats_pipeline.requested_job(payload); -- another caller has just used the same requestId
        if job.id is null then
            raise exception 'A trigger of the app''s has left the row out: nothing was enqueued';
        end if;
    end if;
    perform stats_pipeline.note_repeat(job);
    return stats_pipeline.enqueue_answer(job, 'This request has been enqueued before', true);
end;
$$;

revoke all on function public.enqueue_stats_job(jsonb) from public, anon, authenticated;
grant execute on function public.enqueue_stats_job(jsonb) to service_role;
