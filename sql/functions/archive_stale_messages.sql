-- Archive those of these messages that name a job and belong to none that is still to be done. A raw message that
-- nobody has read is left alone.
create or replace function stats_pipeline.archive_stale_messages(msg_ids bigint[]) returns void
language sql set search_path = pg_catalog, pg_temp as $$
select stats_pipeline.archive_ids(array(select s.msg_id from stats_pipeline.stale_messages(msg_ids) as s (msg_id)));
$$;

revoke all on function stats_pipeline.archive_stale_messages(bigint[]) from public, anon, authenticated;
