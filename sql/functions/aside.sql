-- The keys of everything set aside and not yet due for a retry.
create or replace function stats_pipeline.aside(kind text) returns setof text
language sql stable set search_path = pg_catalog, pg_temp as $$
select s.key
from stats_pipeline.set_aside as s
where s.what = kind and s.next_try_at > clock_timestamp();
$$;

revoke all on function stats_pipeline.aside(text) from public, anon, authenticated;
