-- Take back a lease that no run has claimed and none will. Its jobs are handed out again, later each time that happens
-- to their club, because a run that cannot even start does not start any sooner; with a problem given they fail with it
-- instead. Idempotent; a lease that has been claimed is left alone.
create or replace function stats_pipeline.void_lease(lease_id uuid, problem text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    default_tenant constant uuid := stats_pipeline.default_tenant();
    voided stats_pipeline.run;
begin
    update stats_pipeline.run as r set ended_at = clock_timestamp(), outcome = 'expired'
    where r.id = lease_id and r.run_id is null and r.ended_at is null
    returning r.* into voided;
    if not found then
        return;
    end if;

    if problem is not null then
        perform stats_pipeline.archive_messages(stats_pipeline.write_jobs(array(
            select jsonb_build_object(
                'id', j.id, 'was', j.xmin::text, 'status', 'failed', 'completed_at', clock_timestamp(),
                'error_message', problem)
            from public.background_job_status as j
            where j.id = any(voided.job_ids) and j.status = 'queued' and j.job_type = 'stats_update'
                and stats_pipeline.club(j.tenant_id, j.job_payload, default_tenant)
                    is not distinct from nullif(voided.tenant_id, default_tenant)
        )));
        return;
    end if;

    perform stats_pipeline.put_aside('start', voided.tenant_key, 'No run has started for its jobs', 'void');
    perform stats_pipeline.show_messages(
        voided.job_ids, ceil(extract(epoch from s.next_try_at - clock_timestamp()))::integer)
    from stats_pipeline.set_aside as s
    where s.what = 'start' and s.key = voided.tenant_key;
end;
$$;

revoke all on function stats_pipeline.void_lease(uuid, text) from public, anon, authenticated;
