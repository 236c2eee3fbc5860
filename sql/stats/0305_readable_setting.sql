-- Whether a value is a number that the functions can count with: up to 9999 for points, else up to 999999; whole, but
-- for the weights.
create or replace function stats_pipeline.readable_setting(setting_key text, setting_value text)
returns boolean
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(
        setting_value ~ case
            when setting_key like 'fantasy\_%' then '^\s*[+-]?[0-9]{1,4}\s*$'
            when setting_key like 'performance\_%' or setting_key = 'prior_weight'
                then '^\s*[+-]?[0-9]{1,6}(\.[0-9]{1,9})?\s*$'
            else '^\s*[+-]?[0-9]{1,6}\s*$'
        end,
        false
    );
$$;

revoke all on function stats_pipeline.readable_setting(text, text) from public, anon, authenticated;
grant execute on function stats_pipeline.readable_setting(text, text) to service_role;
