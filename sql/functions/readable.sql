-- The time, or null if some client cannot read it: PostgreSQL's infinity, and years beyond four digits.
create or replace function stats_pipeline.readable(moment timestamptz) returns timestamptz
language sql immutable set search_path = pg_catalog, pg_temp as $$
select case when moment between '1000-01-01 00:00+00' and '9000-01-01 00:00+00' then moment end;
$$;

revoke all on function stats_pipeline.readable(timestamptz) from public, anon, authenticated;
