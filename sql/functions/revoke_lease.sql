-- The run of a lease was cancelled: its jobs fail with the reason, claimed or not, and its sessions are ended.
-- Idempotent, with the conditions of `expire_lease`.
create or replace function stats_pipeline.revoke_lease(
    this_lease uuid,
    not_renewed_since timestamptz,
    reason text
) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    default_tenant constant uuid := stats_pipeline.default_tenant();
    revoked stats_pipeline.lease;
begin
    revoked := stats_pipeline.end_lease(this_lease, 'revoked', not_renewed_since);
    if revoked.id is null then
        return false;
    end if;
    if revoked.run_id is not null then
        perform stats_pipeline.give_back_jobs(this_lease, 0, reason);
        return true;
    end if;

    perform stats_pipeline.archive_messages(stats_pipeline.write_jobs(array(
        select jsonb_build_object(
            'id', j.id, 'was', j.xmin::text, 'status', 'failed', 'completed_at', clock_timestamp(),
            'error_message', reason)
        from public.background_job_status as j
        where j.id = any(revoked.job_ids) and j.status = 'queued' and j.job_type = 'stats_update'
            and stats_pipeline.club(j.tenant_id, j.job_payload, default_tenant)
                is not distinct from nullif(revoked.tenant_id, default_tenant)
    )));
    return true;
end;
$$;

revoke all on function stats_pipeline.revoke_lease(uuid, timestamptz, text) from public, anon, authenticated;
