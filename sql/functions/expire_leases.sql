-- Void the leases that no run has claimed in time. One that cannot be voided now is no reason to keep the others.
create or replace function stats_pipeline.expire_leases() returns void
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '250ms' as $$
declare
    overdue uuid;
begin
    for overdue in
        select r.id
        from stats_pipeline.run as r
        where r.ended_at is null and r.run_id is null and r.lease_until <= clock_timestamp()
    loop
        begin
            perform stats_pipeline.void_lease(overdue, null);
        exception
            when others then perform stats_pipeline.put_aside('repair', 'void lease ' || overdue, sqlerrm, sqlstate);
        end;
    end loop;
end;
$$;

revoke all on function stats_pipeline.expire_leases() from public, anon, authenticated;
