-- Door b, and the path behind the other two: a row inserted as 'queued' sends its own message, in the same
-- transaction. A row that comes with a msg_id was made from a message, which is not sent again. Raises
-- unique_violation if the tenant has used the requestId for another job.
create or replace function stats_pipeline.job_inserted() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
    known_request stats_pipeline.job_request;
begin
    new.tenant_id := coalesce(new.tenant_id, stats_pipeline.to_uuid(new.job_payload -> 'tenantId'));
    new.retry_of := coalesce(new.retry_of, stats_pipeline.to_uuid(new.job_payload -> 'retryOf'));

    if jsonb_typeof(new.job_payload -> 'requestId') = 'string' then
        insert into stats_pipeline.job_request (tenant_key, request_id, job_id)
        values (stats_pipeline.tenant_key(new.tenant_id), new.job_payload ->> 'requestId', new.id)
        on conflict do nothing;

        select r.* into strict known_request
        from stats_pipeline.job_request as r
        where r.tenant_key = stats_pipeline.tenant_key(new.tenant_id)
            and r.request_id = new.job_payload ->> 'requestId';
        if known_request.job_id <> new.id then
            raise unique_violation using message = format(
                'requestId %L is job %s already; nothing was enqueued', known_request.request_id, known_request.job_id);
        end if;
    end if;

    if new.msg_id is null then
        new.msg_id := pgmq.send('stats_update'::text, jsonb_build_object('jobId', new.id), 0);
    end if;
    perform pg_notify('stats_pipeline_work', ''); -- pgmq itself does not notify before 1.7
    return new;
end;
$$;

revoke all on function stats_pipeline.job_inserted() from public, anon, authenticated;

-- After every other "before" trigger by its name, so that it sees the row as it will be stored.
create or replace trigger zz_stats_pipeline_job_inserted
before insert on public.background_job_status
for each row when (new.status = 'queued' and new.job_type = 'stats_update')
execute function stats_pipeline.job_inserted();
