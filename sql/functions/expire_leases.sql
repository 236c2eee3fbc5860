-- Void the leases that no run has claimed in time; their messages are visible again by then.
create or replace function stats_pipeline.expire_leases() returns void
language sql set search_path = '' as $$
update stats_pipeline.run set ended_at = now(), outcome = 'expired'
where ended_at is null and run_id is null and lease_until <= now();
$$;

revoke all on function stats_pipeline.expire_leases() from public, anon, authenticated;
