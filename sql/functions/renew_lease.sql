-- The heartbeat: the run keeps its lease and the messages of its jobs, except those that another session holds. With
-- `silent_for`, the run is not considered silent for this many seconds. False if the lease has ended.
create or replace function stats_pipeline.renew_lease(
    this_lease uuid,
    lease_seconds integer,
    silent_for integer default 0
) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    renewed text;
begin
    update stats_pipeline.lease as l set renewed_at = clock_timestamp() + make_interval(secs => silent_for)
    where l.id = this_lease and l.run_id is not null and l.ended_at is null
    returning l.run_id into renewed;
    if not found then
        return false;
    end if;

    perform pgmq.set_vt('stats_update'::text, due.msg_id, lease_seconds)
    from (
        select q.msg_id
        from stats_pipeline.attempt as a
        join public.background_job_status as j on j.id = a.job_id and j.status = 'processing' and j.run_id = renewed
        join pgmq.q_stats_update as q on q.msg_id = j.msg_id and q.message ->> 'jobId' = j.id::text
        where a.lease_id = this_lease and a.outcome is null
            and q.vt < clock_timestamp() + make_interval(secs => lease_seconds / 2.0)
        for update of q skip locked
    ) as due;
    return true;
end;
$$;

revoke all on function stats_pipeline.renew_lease(uuid, integer, integer) from public, anon, authenticated;
