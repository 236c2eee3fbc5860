-- Start computing. The first op of a run to come moves the leased jobs to 'processing'; for the others the call
-- changes nothing and returns the same. A run without a lease was launched by hand or from the UI: it gets a job of
-- its own, or, while another run of the tenant is open, no row at all (wait and call again). Raises SP001 if the lease
-- was void before the run came, or the run has been replaced since.
create or replace function stats_pipeline.claim_run(
    dagster_run_id text,
    leased_run uuid,
    run_functions text[],
    run_tenant uuid,
    payload jsonb
) returns setof stats_pipeline.run
language plpgsql set search_path = '' as $$
declare
    claimed stats_pipeline.run;
    own_job uuid;
begin
    -- The ten ops of a run come at once: they take turns here.
    perform pg_advisory_xact_lock(hashtextextended('stats_pipeline.claim_run:' || dagster_run_id, 0));
    select r.* into claimed from stats_pipeline.run as r where r.run_id = dagster_run_id;
    if found then
        if claimed.outcome in ('expired', 'died') then
            raise exception using errcode = 'SP001', message = format('run %s has been replaced', dagster_run_id);
        end if;
        return next claimed;
        return;
    end if;

    if leased_run is not null then
        update stats_pipeline.run as r
        set run_id = dagster_run_id, claimed_at = now(), seen_at = now(), functions = run_functions
        where r.id = leased_run and r.run_id is null and r.ended_at is null
        returning r.* into claimed;
        if not found then
            raise exception using errcode = 'SP001',
                message = format('lease %s of run %s is void: its jobs were handed out again', leased_run, dagster_run_id);
        end if;
    else
        own_job := gen_random_uuid();
        insert into stats_pipeline.run (tenant_id, job_ids, functions, run_id, lease_until, claimed_at, seen_at)
        values (run_tenant, array[own_job], run_functions, dagster_run_id, now(), now(), now())
        on conflict (tenant_key) where ended_at is null do nothing
        returning * into claimed;
        if not found then
            return;
        end if;
        insert into public.background_job_status (id, job_payload, status, tenant_id)
        values (own_job, payload, 'processing', run_tenant);
    end if;

    update public.background_job_status as j
    set status = 'processing', run_id = dagster_run_id, attempts = coalesce(j.attempts, 0) + 1,
        started_at = coalesce(j.started_at, now())
    where j.id = any(claimed.job_ids) and (j.status = 'queued' or j.id = own_job);

    insert into stats_pipeline.attempt (job_id, attempt, run_id)
    select j.id, j.attempts, dagster_run_id
    from public.background_job_status as j
    where j.run_id = dagster_run_id;

    perform stats_pipeline.carry_over(claimed.id);
    return next claimed;
end;
$$;

revoke all on function stats_pipeline.claim_run(text, uuid, text[], uuid, jsonb) from public, anon, authenticated;
