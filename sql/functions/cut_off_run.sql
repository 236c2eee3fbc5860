-- End the sessions of a run whose lease was taken from it, as far as this role may. A process that is frozen, or whose
-- host is lost, would otherwise hold the locks of its functions, and the next run would wait for them.
create or replace function stats_pipeline.cut_off_run(dagster_run text) returns void
language sql set search_path = pg_catalog, pg_temp as $$
select pg_terminate_backend(a.pid)
from pg_catalog.pg_stat_activity as a
where a.application_name like format('stats-pipeline run %s pid %%', left(dagster_run, 8))
    and a.datname = current_database() and a.pid <> pg_backend_pid() and pg_has_role(a.usesysid, 'member');
$$;

revoke all on function stats_pipeline.cut_off_run(text) from public, anon, authenticated;
