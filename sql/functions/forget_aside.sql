-- Drop what was set aside and nobody has tried again for a minute since that was due: nobody wants it any more. An
-- enqueue is wanted until it is done.
create or replace function stats_pipeline.forget_aside() returns void
language sql set search_path = pg_catalog, pg_temp as $$
delete from stats_pipeline.set_aside as s
where s.what <> 'enqueue' and s.next_try_at < clock_timestamp() - interval '1 minute';
$$;

revoke all on function stats_pipeline.forget_aside() from public, anon, authenticated;
