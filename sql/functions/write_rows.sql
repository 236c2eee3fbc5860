-- The statement of `write_jobs`: columns that a change does not name stay. Returns the ids of the rows that have the
-- requested status afterwards, with the app's deferred constraints checked.
create or replace function stats_pipeline.write_rows(changes jsonb[]) returns uuid[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    changed uuid[];
begin
    with written as (
        update public.background_job_status as j
        set status = coalesce(c.change ->> 'status', j.status),
            run_id = case when c.change ? 'run_id' then c.change ->> 'run_id' else j.run_id end,
            attempts = coalesce((c.change ->> 'attempts')::integer, j.attempts),
            started_at = coalesce((c.change ->> 'started_at')::timestamptz, j.started_at),
            completed_at = case when c.change ? 'completed_at' then (c.change ->> 'completed_at')::timestamptz
                else j.completed_at end,
            error_message = case when c.change ? 'error_message' then c.change ->> 'error_message'
                else j.error_message end,
            results = case when c.change ? 'results' then nullif(c.change -> 'results', 'null') else j.results end
        from unnest(changes) as c (change)
        where j.id = (c.change ->> 'id')::uuid
        returning j.id, j.status = coalesce(c.change ->> 'status', j.status) as as_asked
    )

    select coalesce(array_agg(w.id) filter (where w.as_asked), '{}') into changed from written as w;
    set constraints all immediate;
    return changed;
end;
$$;

revoke all on function stats_pipeline.write_rows(jsonb[]) from public, anon, authenticated;
