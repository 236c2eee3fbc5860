-- One platform-wide setting as text. These have no default: a missing key is an installation error, and silently
-- guessing it would change every rating.
create or replace function stats_pipeline.platform_setting(setting_key text)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    setting_value text;
begin
    select c.config_value into setting_value
    from public.superadmin_config as c
    where c.config_key = setting_key;
    if not found then
        raise exception 'superadmin_config has no key %', quote_literal(setting_key)
        using errcode = 'no_data_found', hint = 'insert the key; the installation seeds it';
    end if;
    if not stats_pipeline.readable_setting(setting_key, setting_value) then
        raise exception 'superadmin_config % is %, which is no number from -999999 to 999999',
            setting_key, quote_nullable(setting_value)
        using errcode = 'invalid_parameter_value';
    end if;
    return setting_value;
end;
$$;

revoke all on function stats_pipeline.platform_setting(text) from public, anon, authenticated;
grant execute on function stats_pipeline.platform_setting(text) to service_role;
