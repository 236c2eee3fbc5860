-- Door c, and the gate for the other two: make every visible message stand for a queued, well-formed job. A raw
-- message gets its row; a malformed one gets a failed row with the reason; a message whose job is over, gone or known
-- under the same requestId is archived. Atomic and idempotent; a message that is fine is left as it is.
create or replace function stats_pipeline.admit_messages() returns void
language plpgsql set search_path = '' as $$
declare
    -- One look at the queue: a message that arrives between two of the statements below waits for the next call.
    seen constant bigint[] := array(select v.msg_id from stats_pipeline.visible_messages() as v);
begin
    -- Raw messages that can become jobs. Of two with one requestId the older one does.
    insert into public.background_job_status (job_payload, status, msg_id, created_at)
    select jsonb_build_object('timestamp', raw.enqueued_at) || jsonb_strip_nulls(raw.message), 'queued', raw.msg_id,
        raw.enqueued_at
    from (
        select distinct on (stats_pipeline.to_uuid(m.message -> 'tenantId'), m.message ->> 'requestId') m.*
        from stats_pipeline.visible_messages() as m
        where m.msg_id = any(seen) and m.job_id is null and not m.names_job
            and stats_pipeline.payload_problem(m.message) is null
            and not exists (
                select from stats_pipeline.job_request as r
                where r.tenant_key = stats_pipeline.tenant_key(stats_pipeline.to_uuid(m.message -> 'tenantId'))
                    and r.request_id = m.message ->> 'requestId'
            )
        order by stats_pipeline.to_uuid(m.message -> 'tenantId'), m.message ->> 'requestId', m.msg_id
    ) as raw;

    -- Raw messages that cannot. What they held is kept for the reader, unless it is too large to look at.
    insert into public.background_job_status (job_payload, status, msg_id, created_at, completed_at, error_message)
    select case
            when octet_length(m.message::text) > 65536 then
                jsonb_build_object('message', left(m.message::text, 1000), 'truncated', true)
            when jsonb_typeof(m.message) = 'object' then m.message
            else jsonb_build_object('message', m.message)
        end,
        'failed', m.msg_id, m.enqueued_at, now(), 'Rejected: ' || stats_pipeline.payload_problem(m.message)
    from stats_pipeline.visible_messages() as m
    where m.msg_id = any(seen) and m.job_id is null and not m.names_job
        and stats_pipeline.payload_problem(m.message) is not null;

    -- Rows that the app inserted itself, with a payload that cannot be run.
    update public.background_job_status as j
    set status = 'failed', completed_at = now(),
        error_message = 'Rejected: ' || stats_pipeline.payload_problem(j.job_payload)
    from stats_pipeline.visible_messages() as m
    where m.msg_id = any(seen) and j.id = m.job_id and j.status = 'queued' and stats_pipeline.payload_problem(j.job_payload) is not null;

    perform pgmq.archive('stats_update'::text, array_agg(m.msg_id))
    from stats_pipeline.visible_messages() as m
    left join public.background_job_status as j on j.id = m.job_id
    where m.msg_id = any(seen) and (j.id is null or j.status in ('completed', 'failed'))
    having count(*) > 0;
end;
$$;

revoke all on function stats_pipeline.admit_messages() from public, anon, authenticated;
