-- Say on a club's waiting jobs, and on what was set aside for them, why the run of this voided lease did not start. The
-- next claim clears it. Idempotent.
create or replace function stats_pipeline.note_failed_start(lease_id uuid, cause text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    update stats_pipeline.set_aside as s
    set reason = left('No run has started: ' || cause, 500)
    from stats_pipeline.run as r
    where r.id = lease_id and r.run_id is null and r.outcome = 'expired' and s.what = 'start' and s.key = r.tenant_key;

    perform stats_pipeline.write_jobs(array(
        select jsonb_build_object('id', j.id, 'was', j.xmin::text, 'error_message', 'No run has started yet: ' || cause)
        from stats_pipeline.run as r
        join public.background_job_status as j on j.id = any(r.job_ids)
        where r.id = lease_id and r.run_id is null and r.outcome = 'expired'
            and j.status = 'queued' and j.job_type = 'stats_update'
    ));
end;
$$;

revoke all on function stats_pipeline.note_failed_start(uuid, text) from public, anon, authenticated;
