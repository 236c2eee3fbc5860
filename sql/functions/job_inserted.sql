-- Entry point b, inserted rows; the other two pass through it as well. Before a 'queued' row is stored, fill our
-- columns and register the request. If the club has already used the request, the row gets the id of its first job, so
-- that it is rejected like any duplicate id: with unique_violation, or silently by `on conflict do nothing`.
create or replace function stats_pipeline.job_inserted() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    club uuid;
    own_id constant uuid := new.id;
begin
    new.tenant_id := coalesce(new.tenant_id, stats_pipeline.to_uuid(new.job_payload -> 'tenantId'));
    new.retry_of := coalesce(new.retry_of, stats_pipeline.to_uuid(new.job_payload -> 'retryOf'));
    if jsonb_typeof(new.job_payload -> 'requestId') = 'string' and length(new.job_payload ->> 'requestId') <= 200 then
        club := stats_pipeline.club(new.tenant_id, new.job_payload, stats_pipeline.default_tenant());
        new.id := stats_pipeline.register_request(
            stats_pipeline.tenant_key(club), new.job_payload ->> 'requestId', new.id);
        perform stats_pipeline.note_repeat(j)
        from public.background_job_status as j
        where j.id = new.id and new.id <> own_id;
    end if;
    return new;
end;
$$;

revoke all on function stats_pipeline.job_inserted() from public, anon, authenticated;

-- By its name the last "before" trigger, so that it sees the row as it will be stored.
create or replace trigger zz_stats_pipeline_job_inserted
before insert on public.background_job_status
for each row when (new.status = 'queued' and new.job_type = 'stats_update')
execute function stats_pipeline.job_inserted();
