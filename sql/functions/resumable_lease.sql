-- The lost lease that this one repeats: the club's last one, if it had all of these jobs and none of them was changed
-- since it returned them to the queue. With another job in the set, or one that was queued again by hand, there may be
-- newer data, and everything is computed again. Null if there is none.
create or replace function stats_pipeline.resumable_lease(this_lease uuid) returns uuid
language sql stable set search_path = pg_catalog, pg_temp as $$
select predecessor.id
from stats_pipeline.lease as successor
cross join lateral (
    select l.*
    from stats_pipeline.lease as l
    where l.tenant_key = successor.tenant_key and l.claimed_at is not null
    order by l.claimed_at desc
    limit 1
) as predecessor
where successor.id = this_lease and predecessor.outcome in ('expired', 'revoked')
    and cardinality(successor.job_ids) = (
        select count(*)
        from stats_pipeline.attempt as a
        join public.background_job_status as j on j.id = a.job_id
        where a.lease_id = predecessor.id and a.job_id = any(successor.job_ids) and a.outcome = 'died'
            and a.put_back_as = j.xmin::text
    );
$$;

revoke all on function stats_pipeline.resumable_lease(uuid) from public, anon, authenticated;
