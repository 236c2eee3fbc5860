-- Record one call to the app, atomically: confirmed tags are delivered, the others wait longer each time, and with a
-- problem, which concerns the whole route, the route pauses. Ends jobs that waited for the tags; a lease that cannot be
-- settled is set aside, and its confirmed tags stay delivered.
create or replace function stats_pipeline.record_delivery(
    route text,
    asked bigint[],
    taken text[],
    problem text,
    cache_deadline integer
) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    started constant timestamptz := clock_timestamp();
    delivered_lease uuid;
begin
    perform from stats_pipeline.outbox as o where o.id = any(asked) order by o.id for update; -- two callers take turns
    update stats_pipeline.outbox as o set delivered_at = clock_timestamp(), tries = o.tries + 1
    where o.id = any(asked) and o.delivered_at is null and o.tag = any(taken);

    update stats_pipeline.outbox as o
    set tries = o.tries + 1, next_try_at = clock_timestamp() + stats_pipeline.backoff(o.tries)
    where o.id = any(asked) and o.delivered_at is null and problem is null;

    if problem is null then
        delete from stats_pipeline.endpoint as e where e.url = route;
    else
        -- Ten hooks may call the same unreachable app at once: that counts as one failure, not ten.
        insert into stats_pipeline.endpoint as e (url, failures, next_try_at, last_error)
        values (route, 1, clock_timestamp() + stats_pipeline.backoff(0), problem)
        on conflict (url) do update
        set failures = e.failures + 1, last_error = excluded.last_error,
            next_try_at = clock_timestamp() + stats_pipeline.backoff(e.failures)
        where e.next_try_at <= clock_timestamp();
    end if;

    for delivered_lease in
        select distinct o.lease_id from stats_pipeline.outbox as o where o.id = any(asked) order by 1
    loop
        exit when clock_timestamp() > started + interval '1 second'; -- the reconciler settles the others
        begin
            perform stats_pipeline.settle_lease(delivered_lease, true, cache_deadline);
        exception
            when others then perform stats_pipeline.put_aside('repair', 'settle lease ' || delivered_lease, sqlerrm, sqlstate);
        end;
    end loop;
end;
$$;

revoke all on function stats_pipeline.record_delivery(text, bigint[], text[], text, integer)
from public, anon, authenticated;
