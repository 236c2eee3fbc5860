-- The club of a job, from its column or else its payload. Null is the default club, also if it was named by its id.
create or replace function stats_pipeline.club(tenant_id uuid, payload jsonb, default_tenant uuid) returns uuid
language sql immutable set search_path = pg_catalog, pg_temp as $$
select nullif(coalesce(tenant_id, stats_pipeline.to_uuid(payload -> 'tenantId')), default_tenant);
$$;

revoke all on function stats_pipeline.club(uuid, jsonb, uuid) from public, anon, authenticated;
