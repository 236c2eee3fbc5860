-- Leases that are open, or have ended and left a job open or set aside, or were lost within the hour after their claim
-- (Dagster may not know). A run is launched within a second of its lease, plus a tenth of a second for each one leased
-- with it: it is overdue after a third of the lease, and ten seconds at least. A lease cannot be renewed while the
-- server is down: silence counts from the server's start.
with looked_at as (
    select l.id from stats_pipeline.lease as l where l.ended_at is null
    union
    select l.id
    from stats_pipeline.lease as l
    where l.outcome in ('expired', 'revoked') and l.claimed_at is not null and l.ended_at > now() - interval '1 hour'
    union
    select l.id
    from public.background_job_status as j
    join stats_pipeline.attempt as a on a.job_id = j.id
    join stats_pipeline.lease as l on l.id = a.lease_id and l.run_id = j.run_id
    where j.status = 'processing' and j.id::text not in (select stats_pipeline.aside('job'))
    union
    select l.id
    from stats_pipeline.set_aside as s
    join public.background_job_status as j on s.what = 'job' and j.id::text = s.key
    join stats_pipeline.attempt as a on a.job_id = j.id
    join stats_pipeline.lease as l on l.id = a.lease_id and l.run_id = j.run_id
    where s.next_try_at <= now()
)

select
    l.id,
    l.run_id,
    l.outcome,
    l.renewed_at,
    l.run_id is null and l.claim_until <= now() as claim_overdue,
    l.run_id is null
        and l.acquired_at + greatest((l.claim_until - l.acquired_at) / 3, '10 seconds') <= now() as launch_overdue,
    extract(epoch from now() - greatest(l.renewed_at, pg_postmaster_start_time()))::float8 as silent_seconds,
    extract(epoch from now() - l.ended_at)::float8 as ended_seconds,
    cardinality(l.functions) - (
        select count(*) from stats_pipeline.function_result as f
        where f.lease_id = l.id and f.status in ('success', 'failed')
    ) as unrecorded,
    exists (
        select from stats_pipeline.outbox as o
        where o.lease_id = l.id and o.delivered_at is null
    ) as tags_due
from looked_at as s
join stats_pipeline.lease as l on l.id = s.id;
