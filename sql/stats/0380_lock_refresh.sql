-- Makes calls of one function for one tenant wait for each other until the end of the transaction; other tenants and
-- other functions go on. Callers read only after this returns, in a new statement, so they see what the run they waited
-- for has committed.
create or replace function stats_pipeline.lock_refresh(function_name text, target_tenant_id uuid)
returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
    select pg_advisory_xact_lock(hashtextextended(function_name || ':' || target_tenant_id::text, 0));
$$;

revoke all on function stats_pipeline.lock_refresh(text, uuid) from public, anon, authenticated;
grant execute on function stats_pipeline.lock_refresh(text, uuid) to service_role;
