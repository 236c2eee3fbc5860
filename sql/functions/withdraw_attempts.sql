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
from over as o
where a.run_id = o.run_id and a.outcome is null
    and (a.run_id, a.job_id) not in (
        select o.run_id, j.id from over as o cross join lateral stats_pipeline.jobs_of_run(o.run_id) as j
    );
$$;

revoke all on function stats_pipeline.withdraw_attempts(text) from public, anon, authenticated;
