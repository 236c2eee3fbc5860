-- Record a raw message that cannot be run as a failed job. Its content is kept for the reader, unless it is too large
-- to read.
create or replace function stats_pipeline.reject_message(message jsonb, sent_at timestamptz, problem text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    insert into public.background_job_status (job_payload, status, created_at, completed_at, error_message)
    values (
        case
            when octet_length(message::text) > 65536 then
                jsonb_build_object('message', left(message::text, 1000), 'truncated', true)
            when jsonb_typeof(message) = 'object' then message
            else jsonb_build_object('message', message)
        end,
        'failed', sent_at, clock_timestamp(), 'Rejected: ' || problem);
    if not found then
        raise exception 'A trigger of the app''s has left the row out';
    end if;
end;
$$;

revoke all on function stats_pipeline.reject_message(jsonb, timestamptz, text) from public, anon, authenticated;
