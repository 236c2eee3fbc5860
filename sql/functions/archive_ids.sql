-- Move messages from the queue to the archive. A message whose id is already in the archive (the queue's ids have
-- started again) is deleted. One that another session holds stays, until the reconciler finds it.
create or replace function stats_pipeline.archive_ids(msg_ids bigint[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    free constant bigint[] := array(
        select q.msg_id from pgmq.q_stats_update as q where q.msg_id = any(msg_ids) for update skip locked
    );
    taken constant bigint[] := array(select a.msg_id from pgmq.a_stats_update as a where a.msg_id = any(free));
begin
    delete from pgmq.q_stats_update as q where q.msg_id = any(taken);
    perform pgmq.archive('stats_update'::text, array_agg(f.msg_id))
    from unnest(free) as f (msg_id)
    where not f.msg_id = any(taken)
    having count(*) > 0;
end;
$$;

revoke all on function stats_pipeline.archive_ids(bigint[]) from public, anon, authenticated;
