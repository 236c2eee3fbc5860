-- Add the new measurements to the counters, one caller at a time; a second one returns at once.
create or replace function stats_pipeline.add_up_measurements() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    measured bigint[];
begin
    if not pg_try_advisory_xact_lock(hashtextextended('stats_pipeline.add_up_measurements', 0)) then
        return;
    end if;
    measured := array(select m.id from stats_pipeline.measurement as m order by m.id limit 10000);
    if measured = '{}' then
        return;
    end if;

    insert into stats_pipeline.counter as c
    select m.metric, m.label, m.detail, stats_pipeline.bucket(m.metric, m.value), count(*), sum(m.value)
    from stats_pipeline.measurement as m
    where m.id = any(measured)
    group by 1, 2, 3, 4
    on conflict (metric, label, detail, le) do update
    set observations = c.observations + excluded.observations, total = c.total + excluded.total;

    delete from stats_pipeline.measurement as m where m.id = any(measured);
end;
$$;

revoke all on function stats_pipeline.add_up_measurements() from public, anon, authenticated;
