-- Record that one thing could not be done, and why (message and SQLSTATE). It is retried after a second if a lock was
-- in the way (55P03), otherwise with a growing delay. The caller continues with the others.
create or replace function stats_pipeline.put_aside(
    kind text,
    subject text,
    problem text,
    problem_state text,
    details jsonb default null
) returns void
language sql set search_path = pg_catalog, pg_temp as $$
insert into stats_pipeline.set_aside as s (what, key, reason, state, next_try_at, detail)
values (kind, subject, left(problem, 500), problem_state,
    clock_timestamp() + case when problem_state = '55P03' then interval '1 second' else stats_pipeline.backoff(0) end,
    details)
on conflict (what, key) do update
set reason = excluded.reason, state = excluded.state, detail = excluded.detail,
    -- For another reason, or another change that was rejected, the count starts again.
    tries = case when s.state = excluded.state and s.detail is not distinct from excluded.detail then s.tries + 1
        else 1 end,
    next_try_at = case when excluded.state <> '55P03' and s.state = excluded.state
        then clock_timestamp() + stats_pipeline.backoff(s.tries) else excluded.next_try_at end;
$$;

revoke all on function stats_pipeline.put_aside(text, text, text, text, jsonb) from public, anon, authenticated;
