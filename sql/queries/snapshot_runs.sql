-- Runs that are open, or have ended and left a job open or set aside, or have died within the hour (Dagster may not
-- know). A run is launched within a second of its lease, or a tenth of a second later for each that is leased with it:
-- a third of the lease, and ten seconds at least, is long enough to expect one. A run cannot have been seen while the
-- server was down: silence counts from the server's start.
with looked_at as (
    select r.id from stats_pipeline.run as r where r.ended_at is null
    union
    select r.id from stats_pipeline.run as r where r.outcome = 'died' and r.ended_at > now() - interval '1 hour'
    union
    select r.id
    from public.background_job_status as j
    join stats_pipeline.run as r on r.run_id = j.run_id
    where j.status = 'processing' and j.id::text not in (select stats_pipeline.aside('job'))
    union
    select r.id
    from stats_pipeline.set_aside as s
    join public.background_job_status as j on s.what = 'job' and j.id::text = s.key
    join stats_pipeline.run as r on r.run_id = j.run_id
    where s.next_try_at <= now()
)

select
    r.id,
    r.run_id,
    r.outcome,
    r.seen_at,
    r.run_id is null and r.lease_until <= now() as lease_expired,
    r.run_id is null
        and r.leased_at + greatest((r.lease_until - r.leased_at) / 3, '10 seconds') <= now() as launch_overdue,
    extract(epoch from now() - greatest(r.seen_at, pg_postmaster_start_time()))::float8 as silent_seconds,
    extract(epoch from now() - r.ended_at)::float8 as ended_seconds,
    cardinality(r.functions) - (
        select count(*) from stats_pipeline.function_result as f
        where f.run_id = r.run_id and f.status in ('success', 'failed')
    ) as unrecorded,
    exists (
        select from stats_pipeline.outbox as o
        where o.run_id = r.run_id and o.delivered_at is null
    ) as tags_due
from looked_at as l
join stats_pipeline.run as r on r.id = l.id;
