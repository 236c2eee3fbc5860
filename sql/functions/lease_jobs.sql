-- Hand out work: for each tenant without an open run, all its waiting jobs together, the longest-waiting tenant first,
-- while fewer than max_runs runs are open. Their messages stay invisible for lease_seconds; a lease that no run has
-- claimed by then is void, and its jobs are handed out again. One transaction; callers take turns.
create or replace function stats_pipeline.lease_jobs(lease_seconds integer, max_runs integer)
returns table (lease_id uuid, tenant_id uuid, jobs integer)
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    perform pg_advisory_xact_lock(hashtextextended('stats_pipeline.lease_jobs', 0));

    perform stats_pipeline.expire_leases();
    perform stats_pipeline.admit_messages();

    return query
    with waiting as (
        select j.tenant_id, array_agg(j.id order by m.msg_id) as job_ids, min(m.msg_id) as first_msg_id
        from stats_pipeline.visible_messages() as m
        join public.background_job_status as j on j.id = m.job_id and j.status = 'queued'
        where not exists (
            select from stats_pipeline.run as r
            where r.tenant_key = stats_pipeline.tenant_key(j.tenant_id) and r.ended_at is null
        )
        group by j.tenant_id
        order by first_msg_id
        limit greatest(0, max_runs - (select count(*) from stats_pipeline.run as r where r.ended_at is null))
    ),

    leased as (
        insert into stats_pipeline.run (tenant_id, job_ids, lease_until)
        select w.tenant_id, w.job_ids, now() + make_interval(secs => lease_seconds)
        from waiting as w
        returning id, tenant_id, job_ids
    )

    select l.id, l.tenant_id, cardinality(l.job_ids)
    from leased as l
    join waiting as w on w.tenant_id is not distinct from l.tenant_id
    order by w.first_msg_id;

    perform pgmq.set_vt('stats_update'::text, j.msg_id, lease_seconds)
    from stats_pipeline.run as r
    join public.background_job_status as j on j.id = any(r.job_ids)
    where r.ended_at is null and r.run_id is null and r.leased_at = now();
end;
$$;

revoke all on function stats_pipeline.lease_jobs(integer, integer) from public, anon, authenticated;
