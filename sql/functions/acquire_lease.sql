-- Lease a club's waiting jobs together; their messages stay invisible for lease_seconds. Rows that cannot be run, and
-- all rows of a club that does not exist (any more), fail with the reason. Returns null if nothing can be leased now,
-- or if a lease of the club was opened in the meantime.
create or replace function stats_pipeline.acquire_lease(club uuid, names text[], lease_seconds integer)
returns stats_pipeline.lease
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '250ms' as $$
declare
    visible uuid[];
    free uuid[];
    malformed uuid[];
    club_problem constant text := stats_pipeline.tenant_problem(club);
    leased stats_pipeline.lease;
begin
    visible := array(
        select j.id
        from public.background_job_status as j
        join pgmq.q_stats_update as q on q.msg_id = j.msg_id and q.message ->> 'jobId' = j.id::text
        where j.status = 'queued' and j.job_type = 'stats_update'
            and left(coalesce(j.tenant_id::text, j.job_payload ->> 'tenantId', ''), 100) = any(names)
            and q.vt <= clock_timestamp() and j.id::text not in (select stats_pipeline.aside('job'))
    );
    free := array(
        select j.id
        from public.background_job_status as j
        join pgmq.q_stats_update as q on q.msg_id = j.msg_id
        where j.id = any(visible) and j.status = 'queued'
        order by j.msg_id
        for update of j, q skip locked
    );
    perform stats_pipeline.put_aside_locked(array(
        select v.id from unnest(visible) as v (id) where not v.id = any(free)
    )) where cardinality(free) < cardinality(visible);

    malformed := array(
        select j.id
        from public.background_job_status as j
        where j.id = any(free)
            and coalesce(stats_pipeline.payload_problem(j.job_payload), club_problem) is not null
    );
    if malformed <> '{}' then
        perform stats_pipeline.archive_messages(stats_pipeline.write_jobs(array(
            select jsonb_build_object('id', j.id, 'status', 'failed', 'completed_at', clock_timestamp(),
                'error_message',
                'Rejected: ' || coalesce(stats_pipeline.payload_problem(j.job_payload), club_problem))
            from public.background_job_status as j
            where j.id = any(malformed)
        )));
        free := array(
            select f.id
            from unnest(free) with ordinality as f (id, position)
            where not f.id = any(malformed)
            order by f.position
        );
    end if;

    if free <> '{}' then
        insert into stats_pipeline.lease (tenant_id, job_ids, claim_until)
        values (club, free, clock_timestamp() + make_interval(secs => lease_seconds))
        on conflict (tenant_key) where ended_at is null do nothing
        returning * into leased;
        if found then
            perform stats_pipeline.show_messages(free, lease_seconds);
        end if;
    end if;
    return leased;
end;
$$;

revoke all on function stats_pipeline.acquire_lease(uuid, text[], integer) from public, anon, authenticated;
