-- Which of these jobs are 'processing' without a run: no lease that is open, or that only waits for its tags, has an
-- open attempt at them. Null: all such jobs.
create or replace function stats_pipeline.orphans(job_ids uuid[]) returns setof uuid
language sql stable set search_path = pg_catalog, pg_temp as $$
select j.id
from public.background_job_status as j
where j.status = 'processing' and j.job_type = 'stats_update' and (job_ids is null or j.id = any(job_ids))
    and not exists (
        select from stats_pipeline.attempt as a
        join stats_pipeline.lease as l on l.id = a.lease_id
        where a.job_id = j.id and l.run_id = j.run_id and a.outcome is null
            and coalesce(l.outcome, '') not in ('expired', 'revoked')
    );
$$;

revoke all on function stats_pipeline.orphans(uuid[]) from public, anon, authenticated;
