-- Start computing. The first op of a run to come moves the leased jobs to 'processing'; for the others the call changes
-- nothing and returns the same. Only jobs that still wait, and for this club, are taken; a row that is locked or
-- refuses is left to a later run. If none is left the lease is void: the row returned has the outcome 'expired'. A run
-- without a lease was launched by hand or from the UI: it gets a job of its own, or, while another run of the club is
-- open, no row at all (wait and call again). Raises SP001 if the lease was void before the run came, or the run has
-- been replaced since, and 22023 if a run without a lease is for a club that does not exist.
create or replace function stats_pipeline.claim_run(
    dagster_run_id text,
    leased_run uuid,
    run_functions text[],
    run_tenant uuid,
    payload jsonb
) returns setof stats_pipeline.run
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    default_tenant uuid;
    club_problem text;
    claimed stats_pipeline.run;
    leased_jobs integer;
    predecessor text;
    taken uuid[];
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

    default_tenant := stats_pipeline.default_tenant();
    if leased_run is null then
        club_problem := stats_pipeline.tenant_problem(nullif(run_tenant, default_tenant));
        if club_problem is not null then
            raise exception using errcode = 'invalid_parameter_value', message = club_problem;
        end if;
        insert into stats_pipeline.run (tenant_id, job_ids, functions, run_id, lease_until, claimed_at, seen_at)
        values (nullif(run_tenant, default_tenant), '{}', run_functions, dagster_run_id, now(), now(), now())
        on conflict (tenant_key) where ended_at is null do nothing
        returning * into claimed;
        if not found then
            return;
        end if;
        insert into public.background_job_status (job_payload, status, tenant_id, run_id, attempts, started_at)
        values (payload, 'processing', run_tenant, dagster_run_id, 1, now())
        returning id into own_job;
        update stats_pipeline.run as r set job_ids = array[own_job] where r.id = claimed.id returning r.* into claimed;
        insert into stats_pipeline.attempt (job_id, attempt, run_id) values (own_job, 1, dagster_run_id);
        return next claimed;
        return;
    end if;

    select r.* into claimed
    from stats_pipeline.run as r
    where r.id = leased_run and r.run_id is null and r.ended_at is null
    for update;
    if not found then
        raise exception using errcode = 'SP001',
            message = format('lease %s of run %s is void: its jobs were handed out again', leased_run, dagster_run_id);
    end if;

    leased_jobs := cardinality(claimed.job_ids);
    -- The locks come first, so that nobody changes a job between the look at what it may carry over and its claim.
    perform from public.background_job_status as j where j.id = any(claimed.job_ids) for update skip locked;
    predecessor := stats_pipeline.resumable_run(leased_run);
    taken := stats_pipeline.write_jobs(array(
        select jsonb_build_object(
            'id', j.id, 'was', j.xmin::text, 'status', 'processing', 'run_id', dagster_run_id,
            'attempts', least(greatest(coalesce(j.attempts, 0), 0), 100) + 1,
            -- A job that was over and is queued again starts anew.
            'started_at', case when j.completed_at is null then coalesce(j.started_at, now()) else now() end,
            'completed_at', null, 'error_message', null, 'results', null)
        from public.background_job_status as j
        where j.id = any(claimed.job_ids) and j.status = 'queued' and j.job_type = 'stats_update'
            and stats_pipeline.club(j.tenant_id, j.job_payload, default_tenant)
                is not distinct from nullif(claimed.tenant_id, default_tenant)
    ));
    perform stats_pipeline.show_messages(claimed.job_ids, 1) where cardinality(taken) < leased_jobs;
    if taken = '{}' then
        update stats_pipeline.run as r set ended_at = clock_timestamp(), outcome = 'expired'
        where r.id = leased_run
        returning r.* into claimed;
        return next claimed;
        return;
    end if;

    update stats_pipeline.run as r
    set run_id = dagster_run_id, claimed_at = now(), seen_at = clock_timestamp(), functions = run_functions,
        job_ids = array(
            select l.id
            from unnest(r.job_ids) with ordinality as l (id, position)
            where l.id = any(taken)
            order by l.position
        )
    where r.id = leased_run
    returning r.* into claimed;

    insert into stats_pipeline.attempt (job_id, attempt, run_id)
    select j.id, j.attempts, dagster_run_id
    from public.background_job_status as j
    where j.id = any(taken)
    on conflict (job_id, run_id) do update set ended_at = null, outcome = null, error = null;
    insert into stats_pipeline.measurement (metric, value)
    select 'job retries', count(*)
    from public.background_job_status as j
    where j.id = any(taken) and j.attempts > 1
    having count(*) > 0;

    if predecessor is not null and cardinality(claimed.job_ids) = leased_jobs then
        perform stats_pipeline.carry_over(claimed.id, predecessor);
    end if;
    delete from stats_pipeline.set_aside as s where s.what = 'start' and s.key = claimed.tenant_key;
    return next claimed;
end;
$$;

revoke all on function stats_pipeline.claim_run(text, uuid, text[], uuid, jsonb) from public, anon, authenticated;
