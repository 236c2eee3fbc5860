-- Whether a message is one of ours, which names its job. A payload is not, whatever other fields it has.
create or replace function stats_pipeline.names_job(message jsonb) returns boolean
language sql immutable set search_path = pg_catalog, pg_temp as $$
select coalesce(jsonb_typeof(message) = 'object' and message ? 'jobId' and not message ? 'triggeredBy', false);
$$;

revoke all on function stats_pipeline.names_job(jsonb) from public, anon, authenticated;
