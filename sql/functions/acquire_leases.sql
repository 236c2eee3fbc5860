-- Hand out work: for each club without an open lease, all its waiting jobs together, the longest-waiting club first,
-- while fewer than max_runs leases are open. A lease that no run has claimed after lease_seconds expires, and its jobs
-- are handed out again. One transaction; callers take turns. A club that cannot be leased is set aside; the others are
-- leased.
create or replace function stats_pipeline.acquire_leases(lease_seconds integer, max_runs integer)
returns table (lease_id uuid, tenant_id uuid, jobs integer, job_id uuid, triggered_by text, match_id text)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    started timestamptz;
    room integer;
    waiting record;
    leased stats_pipeline.lease;
begin
    perform pg_advisory_xact_lock(hashtextextended('stats_pipeline.acquire_leases', 0));

    started := clock_timestamp();
    perform stats_pipeline.ensure_queue(); -- if it was dropped or not restored; the reconciler then sends the messages
    perform stats_pipeline.expire_leases();
    perform stats_pipeline.admit_messages();

    room := max_runs - (select count(*) from stats_pipeline.lease as l where l.ended_at is null);
    for waiting in select w.tenant_id, w.names from stats_pipeline.waiting_clubs() as w loop
        exit when room <= 0 or clock_timestamp() > started + interval '1 second'; -- next time slow clubs are aside
        begin
            leased := stats_pipeline.acquire_lease(waiting.tenant_id, waiting.names, lease_seconds);
            delete from stats_pipeline.set_aside as s
            where s.what = 'club' and s.key = stats_pipeline.tenant_key(waiting.tenant_id);
        exception
            when others then
                leased := null;
                perform stats_pipeline.put_aside(
                    'club', stats_pipeline.tenant_key(waiting.tenant_id), sqlerrm, sqlstate);
        end;
        if leased.id is not null then
            room := room - 1;
            return query
            select leased.id, leased.tenant_id, cardinality(leased.job_ids), leased.job_ids[1],
                j.job_payload ->> 'triggeredBy', j.job_payload ->> 'matchId'
            from public.background_job_status as j
            where j.id = leased.job_ids[1];
        end if;
    end loop;
end;
$$;

revoke all on function stats_pipeline.acquire_leases(integer, integer) from public, anon, authenticated;
