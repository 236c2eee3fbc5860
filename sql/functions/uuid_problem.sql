-- Whether an optional JSON field is present and not a UUID.
create or replace function stats_pipeline.uuid_problem(field jsonb) returns boolean
language sql immutable set search_path = pg_catalog, pg_temp as $$
select coalesce(jsonb_typeof(field), 'null') <> 'null' and stats_pipeline.to_uuid(field) is null;
$$;

revoke all on function stats_pipeline.uuid_problem(jsonb) from public, anon, authenticated;
