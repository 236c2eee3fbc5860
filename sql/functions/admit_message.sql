-- Create a job for a well-formed raw message, unless its request has one. Raises 22023 for a club that does not exist,
-- the errors of the app's constraints and triggers, deferred ones too, and P0001 if a trigger silently skips the row.
create or replace function stats_pipeline.admit_message(message jsonb, sent_at timestamptz) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    problem text := stats_pipeline.tenant_problem(
        stats_pipeline.club(null, message, stats_pipeline.default_tenant()));
begin
    if problem is not null and (stats_pipeline.requested_job(message)).id is null then
        raise exception using errcode = 'invalid_parameter_value', message = problem;
    end if;
    insert into public.background_job_status (job_payload, status, created_at)
    values (jsonb_build_object('timestamp', sent_at) || jsonb_strip_nulls(message), 'queued', sent_at)
    on conflict (id) do nothing;
    if not found and (stats_pipeline.requested_job(message)).id is null then
        raise exception 'A trigger of the app''s has left the row out';
    end if;
    set constraints all immediate;
end;
$$;

revoke all on function stats_pipeline.admit_message(jsonb, timestamptz) from public, anon, authenticated;
