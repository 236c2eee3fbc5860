-- Record on a club's waiting jobs, and where they were set aside, why no run has claimed this expired lease. The next
-- claim clears it, and can carry over the same results as before. Idempotent.
create or replace function stats_pipeline.note_failed_start(this_lease uuid, cause text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    expired stats_pipeline.lease;
    changes jsonb[];
    written uuid[];
begin
    select l.* into expired
    from stats_pipeline.lease as l
    where l.id = this_lease and l.run_id is null and l.outcome = 'expired';
    if not found then
        return;
    end if;
    update stats_pipeline.set_aside as s
    set reason = left('No run has started: ' || cause, 500)
    where s.what = 'start' and s.key = expired.tenant_key;

    changes := array(
        select jsonb_build_object('id', j.id, 'was', j.xmin::text, 'error_message', 'No run has started yet: ' || cause)
        from public.background_job_status as j
        where j.id = any(expired.job_ids) and j.status = 'queued' and j.job_type = 'stats_update'
    );
    written := stats_pipeline.write_jobs(changes);
    -- A foreign change would cause everything to be computed again; this one is ours.
    update stats_pipeline.attempt as a
    set put_back_as = j.xmin::text
    from unnest(changes) as c (change)
    join public.background_job_status as j on j.id = (c.change ->> 'id')::uuid
    where a.job_id = j.id and j.id = any(written) and a.put_back_as = c.change ->> 'was';
end;
$$;

revoke all on function stats_pipeline.note_failed_start(uuid, text) from public, anon, authenticated;
