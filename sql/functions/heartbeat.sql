-- A run says that it is alive, and keeps the lease on its messages, but for those that somebody else holds. False if
-- the run has been replaced.
create or replace function stats_pipeline.heartbeat(dagster_run_id text, lease_seconds integer) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    update stats_pipeline.run as r set seen_at = clock_timestamp()
    where r.run_id = dagster_run_id and r.ended_at is null;
    if not found then
        return false;
    end if;

    perform pgmq.set_vt('stats_update'::text, due.msg_id, lease_seconds)
    from (
        select q.msg_id
        from public.background_job_status as j
        join pgmq.q_stats_update as q on q.msg_id = j.msg_id and q.message ->> 'jobId' = j.id::text
        where j.run_id = dagster_run_id and j.status = 'processing'
            and q.vt < clock_timestamp() + make_interval(secs => lease_seconds / 2.0)
        for update of q skip locked
    ) as due;
    return true;
end;
$$;

revoke all on function stats_pipeline.heartbeat(text, integer) from public, anon, authenticated;
