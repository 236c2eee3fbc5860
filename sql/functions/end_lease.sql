-- Part of `expire_lease` and `revoke_lease`: end an open lease without its run, and end the run's sessions, unless the
-- run has renewed another lease since: then it works on that one, and commits nothing more for this one. Null if the
-- lease is not open, or is claimed and has been renewed since `not_renewed_since`.
create or replace function stats_pipeline.end_lease(this_lease uuid, how text, not_renewed_since timestamptz)
returns stats_pipeline.lease
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    ended stats_pipeline.lease;
begin
    perform stats_pipeline.cut_off_run(l.run_id) -- first: its sessions may hold the lock that the update needs
    from stats_pipeline.lease as l
    where l.id = this_lease and l.ended_at is null and l.renewed_at <= not_renewed_since
        and not exists (
            select from stats_pipeline.lease as other
            where other.run_id = l.run_id and other.ended_at is null and other.renewed_at > not_renewed_since
        );

    update stats_pipeline.lease as l set ended_at = clock_timestamp(), outcome = how
    where l.id = this_lease and l.ended_at is null and (l.run_id is null or l.renewed_at <= not_renewed_since)
    returning l.* into ended;
    return ended;
end;
$$;

revoke all on function stats_pipeline.end_lease(uuid, text, timestamptz) from public, anon, authenticated;
