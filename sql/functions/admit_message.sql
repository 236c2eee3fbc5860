-- Make a well-formed raw message a job, unless its request has one. Raises what the app's constraints and triggers
-- raise, deferred ones too, and P0001 if a trigger leaves the row out without a word.
create or replace function stats_pipeline.admit_message(message jsonb, sent_at timestamptz) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
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
