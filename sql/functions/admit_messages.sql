-- Door c: every visible raw message becomes a job with a message of its own and is archived. A malformed one, or one
-- that the app's database refuses, becomes a failed job with the reason; of one whose requestId is known only the
-- message goes. Oldest first, 500 at most; a message whose request is being enqueued by somebody else waits, and only
-- that.
create or replace function stats_pipeline.admit_messages() returns void
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '100ms' as $$
declare
    raw record;
    problem text;
begin
    for raw in
        select q.msg_id, q.message, q.enqueued_at
        from pgmq.q_stats_update as q
        where q.vt <= clock_timestamp() and (jsonb_typeof(q.message) = 'object' and q.message ? 'jobId') is not true
            and q.msg_id::text not in (select stats_pipeline.aside('message'))
        order by q.msg_id
        limit 500
        for update skip locked
    loop
        begin
            problem := stats_pipeline.payload_problem(raw.message);
            if problem is null then
                begin
                    insert into public.background_job_status (job_payload, status, created_at)
                    values (
                        jsonb_build_object('timestamp', raw.enqueued_at) || jsonb_strip_nulls(raw.message), 'queued',
                        raw.enqueued_at)
                    on conflict (id) do nothing;
                    set constraints all immediate;
                exception
                    when lock_not_available or deadlock_detected then raise;
                    when others then problem := sqlerrm;
                end;
            end if;
            if problem is not null then
                perform stats_pipeline.reject_message(raw.message, raw.enqueued_at, problem);
            end if;
            perform pgmq.archive('stats_update'::text, raw.msg_id);
            delete from stats_pipeline.set_aside as s where s.what = 'message' and s.key = raw.msg_id::text;
        exception
            when others then perform stats_pipeline.put_aside('message', raw.msg_id::text, sqlerrm, sqlstate);
        end;
    end loop;
end;
$$;

revoke all on function stats_pipeline.admit_messages() from public, anon, authenticated;
