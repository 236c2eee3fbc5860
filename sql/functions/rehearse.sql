-- Go through the life of a job once, for an invented club, and roll back: enqueue in each of the three ways, lease,
-- claim, results, settle. Null if everything works, otherwise the step that failed and why. No row or lock of another
-- club is touched. It leaves gaps in two sequences: the ids of messages and of measurements.
create or replace function stats_pipeline.rehearse(functions text[], out step text, out problem text, out state text)
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '1s' as $$
declare
    club uuid := gen_random_uuid();
    dagster_run constant text := 'rehearsal ' || club;
    payload jsonb := jsonb_build_object('triggeredBy', 'admin', 'tenantId', club);
    leased stats_pipeline.lease;
    refused text;
begin
    begin
        perform set_config('stats_pipeline.made_up_club', club::text, true);
        step := 'enqueue by public.enqueue_stats_job';
        perform public.enqueue_stats_job(payload || jsonb_build_object('requestId', 'by function'));
        step := 'enqueue by insert';
        insert into public.background_job_status (job_payload, status)
        values (payload || jsonb_build_object('requestId', 'by insert'), 'queued');
        step := 'enqueue by message';
        perform stats_pipeline.admit_message(payload || jsonb_build_object('requestId', 'by message'), clock_timestamp());

        step := 'lease';
        leased := stats_pipeline.acquire_lease(club, array[club::text], 30);
        if cardinality(leased.job_ids) is distinct from 3 then
            raise exception 'of three jobs % can be leased', coalesce(cardinality(leased.job_ids), 0);
        end if;
        step := 'claim';
        perform stats_pipeline.claim_lease(leased.id, dagster_run, functions, club, payload);
        select s.reason into refused
        from stats_pipeline.set_aside as s
        where s.what = 'job' and s.key = any(leased.job_ids::text[])
        limit 1;
        if found then
            raise exception '%', refused;
        end if;
        step := 'result';
        perform stats_pipeline.complete_function(leased.id, f.rpc, '{}'::text[], 1, 0)
        from unnest(functions) as f (rpc);
        step := 'settle';
        perform stats_pipeline.settle_lease(leased.id, false, 900);
        if exists (
            select from public.background_job_status as j
            where j.id = any(leased.job_ids) and j.status is distinct from 'completed'
        ) then
            raise exception 'a job whose functions are all done is not completed';
        end if;
        raise exception using errcode = 'SP002'; -- rolls back this block
    exception
        when sqlstate 'SP002' then step := null;
        when others then
            problem := sqlerrm;
            state := sqlstate;
    end;
end;
$$;

revoke all on function stats_pipeline.rehearse(text[]) from public, anon, authenticated;
