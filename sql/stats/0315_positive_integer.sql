-- A text as a whole number from 1 to 999999, null for anything else.
create or replace function stats_pipeline.positive_integer(value text)
returns integer
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
    select case when btrim(value) ~ '^\+?[0-9]{1,6}$' then nullif(btrim(value)::integer, 0) end;
$$;

revoke all on function stats_pipeline.positive_integer(text) from public, anon, authenticated;
grant execute on function stats_pipeline.positive_integer(text) to service_role;
