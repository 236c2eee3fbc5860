-- Entry point c, raw messages: every visible one becomes a job with a new message and is archived. A malformed one, one
-- of a club that does not exist, or one that the app's database rejects, becomes a failed job with the reason; one
-- whose requestId is known is only archived. Oldest first, at most 500 and for half a second. A message whose request
-- is being enqueued by another session waits; the others do not.
create or replace function stats_pipeline.admit_messages() returns void
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '20ms' as $$
declare
    started constant timestamptz := clock_timestamp();
    raw record;
    problem text;
begin
    for raw in
        select q.msg_id, q.message, q.enqueued_at
        from pgmq.q_stats_update as q
        where q.vt <= clock_timestamp() and not stats_pipeline.names_job(q.message)
            and q.msg_id::text not in (select stats_pipeline.aside('message'))
        order by q.msg_id
        limit 500
        for update skip locked
    loop
        exit when clock_timestamp() > started + interval '500 milliseconds';
        begin
            problem := stats_pipeline.payload_problem(raw.message);
            if problem is null then
                begin
                    perform stats_pipeline.admit_message(raw.message, raw.enqueued_at);
                exception
                    when lock_not_available or deadlock_detected then raise;
                    when others then problem := sqlerrm;
                end;
            end if;
            if problem is not null then
                perform stats_pipeline.reject_message(raw.message, raw.enqueued_at, problem);
            end if;
            perform stats_pipeline.archive_ids(array[raw.msg_id]);
            set constraints all immediate;
            delete from stats_pipeline.set_aside as s where s.what = 'message' and s.key = raw.msg_id::text;
        exception
            when others then perform stats_pipeline.put_aside('message', raw.msg_id::text, sqlerrm, sqlstate);
        end;
    end loop;
end;
$$;

revoke all on function stats_pipeline.admit_messages() from public, anon, authenticated;
