-- One setting of one tenant as text, null when it is not set. The caller casts: a value that is not a number fails the
-- functions that read it and no others.
create or replace function stats_pipeline.setting(target_tenant_id uuid, setting_key text)
returns text
language sql
stable
set search_path = ''
as $$
    select c.config_value
    from public.app_config as c
    where c.tenant_id = target_tenant_id and c.config_key = setting_key;
$$;

revoke all on function stats_pipeline.setting(uuid, text) from public, anon, authenticated;
grant execute on function stats_pipeline.setting(uuid, text) to service_role;
