-- The UUID in a JSON string; null for anything else, where a cast would raise.
create or replace function stats_pipeline.to_uuid(field jsonb) returns uuid
language sql immutable set search_path = pg_catalog, pg_temp as $$
select case
    when field #>> '{}' ~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' then
        (field #>> '{}')::uuid
end;
$$;

revoke all on function stats_pipeline.to_uuid(jsonb) from public, anon, authenticated;
