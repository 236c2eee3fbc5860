-- A tenant's settings as one JSON object of texts, so that a function reads the table once. Only values that the
-- functions can read (see readable_setting); for others, as for missing ones, the caller has a default. Of a key that
-- is there twice, the later row counts.
create or replace function stats_pipeline.settings(target_tenant_id uuid)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(jsonb_object_agg(c.config_key, c.config_value order by c.config_id), '{}')
    from public.app_config as c
    where c.tenant_id = target_tenant_id and stats_pipeline.readable_setting(c.config_key, c.config_value);
$$;

revoke all on function stats_pipeline.settings(uuid) from public, anon, authenticated;
grant execute on function stats_pipeline.settings(uuid) to service_role;
