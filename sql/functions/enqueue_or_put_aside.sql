-- Enqueue a job and return the answer. If that is rejected, or another session holds its request for a second, set it
-- aside under the key for a retry, and return null. Deferred constraints of the app's are checked here.
create or replace function stats_pipeline.enqueue_or_put_aside(payload jsonb, aside_key text) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '1s' as $$
declare
    answer jsonb;
begin
    begin
        answer := public.enqueue_stats_job(payload);
        set constraints all immediate;
        delete from stats_pipeline.set_aside as s where s.what = 'enqueue' and s.key = aside_key;
    exception
        when others then
            answer := null;
            perform stats_pipeline.put_aside('enqueue', aside_key, sqlerrm, sqlstate, payload);
    end;
    return answer;
end;
$$;

revoke all on function stats_pipeline.enqueue_or_put_aside(jsonb, text) from public, anon, authenticated;
