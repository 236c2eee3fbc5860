-- Take back a lease that no run has claimed, or whose run has stopped renewing it, and queue its jobs again. Unclaimed
-- jobs are handed out again with a delay that grows each time this happens to their club, because retrying at once
-- would not help a run that cannot start. Claimed jobs that have had max_attempts fail with the reason, and the run's
-- sessions are ended. Idempotent: a claimed lease is left alone if it has been renewed since `not_renewed_since` or
-- that is null, and false is returned. A job that cannot be written now becomes an orphan, for the reconciler.
create or replace function stats_pipeline.expire_lease(
    this_lease uuid,
    not_renewed_since timestamptz,
    max_attempts integer,
    reason text
) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    expired stats_pipeline.lease;
begin
    expired := stats_pipeline.end_lease(this_lease, 'expired', not_renewed_since);
    if expired.id is null then
        return false;
    end if;
    if expired.run_id is not null then
        perform stats_pipeline.give_back_jobs(this_lease, max_attempts, reason);
        return true;
    end if;

    perform stats_pipeline.put_aside('start', expired.tenant_key, 'No run has started for its jobs', 'void');
    perform stats_pipeline.show_messages(
        expired.job_ids, ceil(extract(epoch from s.next_try_at - clock_timestamp()))::integer)
    from stats_pipeline.set_aside as s
    where s.what = 'start' and s.key = expired.tenant_key;
    return true;
end;
$$;

revoke all on function stats_pipeline.expire_lease(uuid, timestamptz, integer, text) from public, anon, authenticated;
