-- Expire the leases that no run has claimed in time. One that cannot be taken back now does not stop the others.
create or replace function stats_pipeline.expire_leases() returns void
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '250ms' as $$
declare
    overdue uuid;
begin
    for overdue in
        select l.id
        from stats_pipeline.lease as l
        where l.ended_at is null and l.run_id is null and l.claim_until <= clock_timestamp()
    loop
        begin
            perform stats_pipeline.expire_lease(overdue, null, 0, '');
        exception
            when others then perform stats_pipeline.put_aside('repair', 'expire lease ' || overdue, sqlerrm, sqlstate);
        end;
    end loop;
end;
$$;

revoke all on function stats_pipeline.expire_leases() from public, anon, authenticated;
