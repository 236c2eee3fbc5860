-- A run says that it is alive, and keeps the lease on its messages. False if the run has been replaced.
create or replace function stats_pipeline.heartbeat(dagster_run_id text, lease_seconds integer) returns boolean
language plpgsql set search_path = '' as $$
declare
    is_open boolean;
begin
    update stats_pipeline.run as r set seen_at = clock_timestamp()
    where r.run_id = dagster_run_id and r.ended_at is null;
    is_open := found;

    perform pgmq.set_vt('stats_update'::text, q.msg_id, lease_seconds)
    from pgmq.q_stats_update as q
    join public.background_job_status as j on j.msg_id = q.msg_id
    where is_open and j.run_id = dagster_run_id and j.status = 'processing'
        and q.vt < clock_timestamp() + make_interval(secs => lease_seconds / 2.0);
    return is_open;
end;
$$;

revoke all on function stats_pipeline.heartbeat(text, integer) from public, anon, authenticated;
