-- End the attempts of ended leases at jobs that are no longer theirs, because the row was changed by another program.
-- The written values stay; a job still 'processing' is an orphan. Of one lease, or of all for null.
create or replace function stats_pipeline.withdraw_attempts(this_lease uuid) returns void
language sql set search_path = pg_catalog, pg_temp as $$
with over as (
    select distinct a.lease_id
    from stats_pipeline.attempt as a
    join stats_pipeline.lease as l on l.id = a.lease_id
    where a.outcome is null and l.ended_at is not null and (this_lease is null or a.lease_id = this_lease)
)

update stats_pipeline.attempt as a
set ended_at = clock_timestamp(), outcome = 'withdrawn', error = 'The row was changed by somebody else'
from (
    select open.job_id, open.lease_id
    from over as o
    join stats_pipeline.attempt as open on open.lease_id = o.lease_id and open.outcome is null
    where (open.lease_id, open.job_id) not in (
        select o.lease_id, j.id from over as o cross join lateral stats_pipeline.jobs_of_lease(o.lease_id) as j
    )
    for update of open skip locked -- the job may be in deletion
) as lost
where a.job_id = lost.job_id and a.lease_id = lost.lease_id;
$$;

revoke all on function stats_pipeline.withdraw_attempts(uuid) from public, anon, authenticated;
