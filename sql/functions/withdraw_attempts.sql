-- End the attempts of runs that are over at jobs that are not theirs any more: somebody else has changed the row since.
-- What was written there stays, and what is still 'processing' is an orphan. Of one run, or of all for null.
create or replace function stats_pipeline.withdraw_attempts(dagster_run_id text) returns void
language sql set search_path = pg_catalog, pg_temp as $$
with over as (
    select distinct a.run_id
    from stats_pipeline.attempt as a
    join stats_pipeline.run as r on r.run_id = a.run_id
    where a.outcome is null and r.ended_at is not null and (dagster_run_id is null or a.run_id = dagster_run_id)
)

update stats_pipeline.attempt as a
set ended_at = clock_timestamp(), outcome = 'withdrawn', error = 'The row was changed by somebody else'
from (
    select l.job_id, l.run_id
    from over as o
    join stats_pipeline.attempt as l on l.run_id = o.run_id and l.outcome is null
    where (l.run_id, l.job_id) not in (
        select o.run_id, j.id from over as o cross join lateral stats_pipeline.jobs_of_run(o.run_id) as j
    )
    for update of l skip locked -- somebody may be deleting the job
) as lost
where a.job_id = lost.job_id and a.run_id = lost.run_id;
$$;

revoke all on function stats_pipeline.withdraw_attempts(text) from public, anon, authenticated;
