-- Archive those of these messages that name a job but do not belong to an unfinished one. A raw message that was not
-- read yet is left alone.
create or replace function stats_pipeline.archive_stale_messages(msg_ids bigint[]) returns void
language sql set search_path = pg_catalog, pg_temp as $$
select stats_pipeline.archive_ids(array(select s.msg_id from stats_pipeline.stale_messages(msg_ids) as s (msg_id)));
$$;

revoke all on function stats_pipeline.archive_stale_messages(bigint[]) from public, anon, authenticated;
