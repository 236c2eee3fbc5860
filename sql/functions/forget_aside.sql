-- Drop everything set aside whose retry has been due for a minute without a try: it is no longer needed. An enqueue is
-- kept until it is done.
create or replace function stats_pipeline.forget_aside() returns void
language sql set search_path = pg_catalog, pg_temp as $$
delete from stats_pipeline.set_aside as s
where s.what <> 'enqueue' and s.next_try_at < clock_timestamp() - interval '1 minute';
$$;

revoke all on function stats_pipeline.forget_aside() from public, anon, authenticated;
