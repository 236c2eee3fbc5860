-- The text that identifies a tenant: its UUID, or 'default' for jobs without one.
create or replace function stats_pipeline.tenant_key(tenant_id uuid) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
select coalesce(tenant_id::text, 'default');
$$;

revoke all on function stats_pipeline.tenant_key(uuid) from public, anon, authenticated;
