-- Register a club's request for this job and return the job's id; or return the id of the job that already has it.
-- Waits for an open transaction that has registered the same request. A request whose job is gone is free.
create or replace function stats_pipeline.register_request(club_key text, request text, job uuid) returns uuid
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    known uuid;
begin
    loop
        insert into stats_pipeline.job_request (tenant_key, request_id, job_id) values (club_key, request, job)
        on conflict (tenant_key, request_id) do nothing;
        if found then
            return job;
        end if;
        select r.job_id into known
        from stats_pipeline.job_request as r
        where r.tenant_key = club_key and r.request_id = request;
        if exists (select from public.background_job_status as j where j.id = known) then
            return known;
        end if;
        update stats_pipeline.job_request as r set job_id = job
        where r.tenant_key = club_key and r.request_id = request and r.job_id = known;
        if found then
            return job;
        end if;
    end loop;
end;
$$;

revoke all on function stats_pipeline.register_request(text, text, uuid) from public, anon, authenticated;
