-- Remember what could not be done for one thing, and why (message and SQLSTATE). It is tried again after a second where
-- somebody holds a lock (55P03), or else later each time. The caller goes on with the others.
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
    -- Another reason, or another change that was refused, is counted from the start.
    tries = case when s.state = excluded.state and s.detail is not distinct from excluded.detail then s.tries + 1
        else 1 end,
    next_try_at = case when excluded.state <> '55P03' and s.state = excluded.state
        then clock_timestamp() + stats_pipeline.backoff(s.tries) else excluded.next_try_at end;
$$;

revoke all on function stats_pipeline.put_aside(text, text, text, text, jsonb) from public, anon, authenticated;
