-- Archive those of these messages that name a job and belong to none that is still to be done. A raw message that
-- nobody has read is left alone, and so is one that somebody else holds.
create or replace function stats_pipeline.archive_stale_messages(msg_ids bigint[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    stale constant bigint[] := array(
        select q.msg_id
        from pgmq.q_stats_update as q
        where q.msg_id = any(msg_ids)
            and q.msg_id in (select s.msg_id from stats_pipeline.stale_messages() as s (msg_id))
        for update skip locked
    );
begin
    if stale <> '{}' then
        perform pgmq.archive('stats_update'::text, stale);
    end if;
end;
$$;

revoke all on function stats_pipeline.archive_stale_messages(bigint[]) from public, anon, authenticated;
