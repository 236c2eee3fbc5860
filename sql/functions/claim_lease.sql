-- Start computing. The first op of a run to call it moves the leased jobs to 'processing'; for the others the call
-- changes nothing and returns the same. Only jobs of this club that are still waiting are claimed; a row that is
-- locked, or whose update is rejected, is left to a later lease. If none is left, the returned lease has the outcome
-- 'empty'. A run without a lease was launched by hand or from the UI: it acquires one, or, while another lease of the
-- club is open, gets no row at all (wait and call again). If it re-executes `parent_run`, its jobs are those that
-- failed there, and the functions that succeeded there and are not called again count for it; otherwise it gets a new
-- job. Raises SP001 if the lease had already ended or has been lost since, and 22023 if a run without a lease is for a
-- club that does not exist.
create or replace function stats_pipeline.claim_lease(
    this_lease uuid,
    dagster_run text,
    run_functions text[],
    run_tenant uuid,
    payload jsonb,
    parent_run text default null
) returns setof stats_pipeline.lease
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    default_tenant uuid;
    club_problem text;
    claimed stats_pipeline.lease;
    leased_jobs integer;
    predecessor uuid;
    parent stats_pipeline.lease;
    taken uuid[];
    own_job uuid;
begin
    -- The ten ops of a run call this at the same time: they take turns here.
    perform pg_advisory_xact_lock(
        hashtextextended('stats_pipeline.claim_lease:' || coalesce(this_lease::text, dagster_run), 0));
    select l.* into claimed
    from stats_pipeline.lease as l
    where l.run_id = dagster_run and (l.id = this_lease or this_lease is null);
    if found then
        if claimed.outcome in ('expired', 'revoked') then
            raise exception using errcode = 'SP001',
                message = format('lease %s was taken from run %s', claimed.id, dagster_run);
        end if;
        return next claimed;
        return;
    end if;

    default_tenant := stats_pipeline.default_tenant();
    if this_lease is null then
        club_problem := stats_pipeline.tenant_problem(nullif(run_tenant, default_tenant));
        if club_problem is not null then
            raise exception using errcode = 'invalid_parameter_value', message = club_problem;
        end if;
        insert into stats_pipeline.lease (tenant_id, job_ids, functions, run_id, claim_until, claimed_at, renewed_at)
        values (nullif(run_tenant, default_tenant), '{}', run_functions, dagster_run, now(), now(), now())
        on conflict (tenant_key) where ended_at is null do nothing
        returning * into claimed;
        if not found then
            return;
        end if;

        select l.* into parent
        from stats_pipeline.lease as l
        where l.run_id = parent_run and l.tenant_key = claimed.tenant_key and l.outcome = 'failed'
        order by l.claimed_at desc
        limit 1;
        taken := stats_pipeline.write_jobs(array(
            select jsonb_build_object(
                'id', j.id, 'was', seen.xmin::text, 'status', 'processing', 'run_id', dagster_run,
                'attempts', least(greatest(coalesce(j.attempts, 0), 0), 100) + 1,
                'started_at', now(), 'completed_at', null, 'error_message', null, 'results', null)
            from stats_pipeline.jobs_of_lease(parent.id) as j
            join public.background_job_status as seen on seen.id = j.id
            where j.status = 'failed'
        ));
        if taken <> '{}' then
            update stats_pipeline.lease as l
            set job_ids = taken,
                functions = array(select distinct f.rpc from unnest(parent.functions || run_functions) as f (rpc))
            where l.id = claimed.id
            returning l.* into claimed;
            insert into stats_pipeline.attempt (job_id, attempt, lease_id)
            select j.id, j.attempts, claimed.id
            from public.background_job_status as j
            where j.id = any(taken);
            insert into stats_pipeline.measurement (metric, value) values ('job retries', cardinality(taken));
            perform stats_pipeline.carry_over(claimed.id, parent.id, run_functions);
            return next claimed;
            return;
        end if;

        insert into public.background_job_status (job_payload, status, tenant_id, run_id, attempts, started_at)
        values (payload, 'processing', run_tenant, dagster_run, 1, now())
        returning id into own_job;
        update stats_pipeline.lease as l set job_ids = array[own_job] where l.id = claimed.id returning l.* into claimed;
        insert into stats_pipeline.attempt (job_id, attempt, lease_id) values (own_job, 1, claimed.id);
        return next claimed;
        return;
    end if;

    select l.* into claimed
    from stats_pipeline.lease as l
    where l.id = this_lease and l.run_id is null and l.ended_at is null
    for update;
    if not found then
        raise exception using errcode = 'SP001',
            message = format('lease %s of run %s has ended: its jobs were handed out again', this_lease, dagster_run);
    end if;

    leased_jobs := cardinality(claimed.job_ids);
    -- The locks come first, so that no job changes between the check of what may be carried over and its claim.
    perform from public.background_job_status as j where j.id = any(claimed.job_ids) for update skip locked;
    predecessor := stats_pipeline.resumable_lease(this_lease);
    taken := stats_pipeline.write_jobs(array(
        select jsonb_build_object(
            'id', j.id, 'was', j.xmin::text, 'status', 'processing', 'run_id', dagster_run,
            'attempts', least(greatest(coalesce(j.attempts, 0), 0), 100) + 1,
            -- A job that had ended and was queued again gets a new start time.
            'started_at', case when j.completed_at is null then coalesce(j.started_at, now()) else now() end,
            'completed_at', null, 'error_message', null, 'results', null)
        from public.background_job_status as j
        where j.id = any(claimed.job_ids) and j.status = 'queued' and j.job_type = 'stats_update'
            and stats_pipeline.club(j.tenant_id, j.job_payload, default_tenant)
                is not distinct from nullif(claimed.tenant_id, default_tenant)
    ));
    perform stats_pipeline.show_messages(claimed.job_ids, 1) where cardinality(taken) < leased_jobs;
    if taken = '{}' then
        return next stats_pipeline.release_lease(this_lease, 'empty');
        return;
    end if;

    update stats_pipeline.lease as l
    set run_id = dagster_run, claimed_at = now(), renewed_at = clock_timestamp(), functions = run_functions,
        job_ids = array(
            select t.id
            from unnest(l.job_ids) with ordinality as t (id, position)
            where t.id = any(taken)
            order by t.position
        )
    where l.id = this_lease
    returning l.* into claimed;

    insert into stats_pipeline.attempt (job_id, attempt, lease_id)
    select j.id, j.attempts, this_lease
    from public.background_job_status as j
    where j.id = any(taken);
    insert into stats_pipeline.measurement (metric, value)
    select 'job retries', count(*)
    from public.background_job_status as j
    where j.id = any(taken) and j.attempts > 1
    having count(*) > 0;

    if predecessor is not null and cardinality(claimed.job_ids) = leased_jobs then
        perform stats_pipeline.carry_over(this_lease, predecessor, '{}');
    end if;
    delete from stats_pipeline.set_aside as s where s.what = 'start' and s.key = claimed.tenant_key;
    return next claimed;
end;
$$;

revoke all on function stats_pipeline.claim_lease(uuid, text, text[], uuid, jsonb, text)
from public, anon, authenticated;
