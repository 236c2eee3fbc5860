-- The trigger of a job; 'other' for any other text, which a rejected payload may have.
create or replace function stats_pipeline.trigger_of(payload jsonb) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
select case when payload ->> 'triggeredBy' in ('post-match', 'admin', 'cron') then payload ->> 'triggeredBy'
    else 'other' end;
$$;

revoke all on function stats_pipeline.trigger_of(jsonb) from public, anon, authenticated;
