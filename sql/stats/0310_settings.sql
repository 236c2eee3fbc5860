-- A tenant's settings as one JSON object of texts, so that a function reads the table once. The caller casts what it
-- uses: a value that is not a number fails the functions that read it and no others.
create or replace function stats_pipeline.settings(target_tenant_id uuid)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(jsonb_object_agg(c.config_key, c.config_value), '{}')
    from public.app_config as c
    where c.tenant_id = target_tenant_id;
$$;

revoke all on function stats_pipeline.settings(uuid) from public, anon, authenticated;
grant execute on function stats_pipeline.settings(uuid) to service_role;
