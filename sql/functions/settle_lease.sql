-- Update a lease and its jobs from the recorded results. Idempotent, and correct for any caller and in any order: after
-- the last function the lease is released, and the club can get the next one; when no tag is due any more, its jobs end
-- and their messages are archived. Tags still due after cache_deadline seconds fail the job; delivered later, they
-- complete it. A row that cannot be written now is set aside and does not delay the others.
create or replace function stats_pipeline.settle_lease(
    this_lease uuid,
    cache_configured boolean,
    cache_deadline integer
) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    settled stats_pipeline.lease;
    outcome_of_lease jsonb;
    tags_due boolean;
    is_over boolean;
    failures text;
    end_of_jobs jsonb := '{}';
    written uuid[];
begin
    -- Callers take turns, so that the statements below see the records of every earlier caller. The lease's row is not
    -- locked: its renewal writes there.
    perform pg_advisory_xact_lock(hashtextextended('stats_pipeline.settle_lease:' || this_lease, 0));
    select l.* into settled from stats_pipeline.lease as l where l.id = this_lease;
    if settled.run_id is null or settled.outcome in ('expired', 'revoked') then
        return;
    end if;
    outcome_of_lease := stats_pipeline.lease_results(this_lease, cache_configured);

    if settled.ended_at is null
        and (outcome_of_lease ->> 'successful_functions')::integer + (outcome_of_lease ->> 'failed_functions')::integer
        >= (outcome_of_lease ->> 'total_functions')::integer
    then
        settled := stats_pipeline.release_lease(
            this_lease,
            case when (outcome_of_lease ->> 'failed_functions')::integer = 0 then 'succeeded' else 'failed' end);
        if settled.id is null then
            return; -- it was just taken back
        end if;
    end if;

    tags_due := cache_configured and jsonb_array_length(outcome_of_lease #> '{cache,pending}') > 0;
    is_over := settled.ended_at is not null
        and (not tags_due or settled.ended_at < clock_timestamp() - make_interval(secs => cache_deadline));
    if is_over then
        -- In the order in which they failed, with the reason of the first one.
        select 'Failed functions: ' || string_agg(f.rpc || case when f.place = 1 then f.reason else '' end, ', '
            order by f.place) into failures
        from (
            select
                fr.rpc,
                coalesce(' (' || nullif(trim(regexp_replace(fr.error, '\s+', ' ', 'g')), '') || ')', '') as reason,
                row_number() over (order by fr.recorded_at, fr.rpc) as place
            from stats_pipeline.function_result as fr
            where fr.lease_id = this_lease and fr.status = 'failed'
        ) as f;
        end_of_jobs := jsonb_build_object(
            'status', case when settled.outcome = 'succeeded' and not tags_due then 'completed' else 'failed' end,
            'completed_at', clock_timestamp(),
            'error_message', nullif(concat_ws('; ',
                case when length(failures) > 300 then left(failures, 299) || '…' else failures end,
                case when tags_due then 'Cache tags not delivered: ' || (
                    select string_agg(t.tag, ', ')
                    from jsonb_array_elements_text(outcome_of_lease #> '{cache,pending}') as t (tag))
                end), ''));
    end if;

    written := stats_pipeline.write_jobs(array(
        select jsonb_build_object('id', j.id, 'was', seen.xmin::text, 'results', n.results)
            || case when n.is_to_end then end_of_jobs else '{}' end
        from stats_pipeline.jobs_of_lease(this_lease) as j
        join public.background_job_status as seen on seen.id = j.id
        cross join lateral (
            select
                is_over and (
                    j.status = 'processing' or (j.status = 'failed' and settled.outcome = 'succeeded' and not tags_due)
                ) as is_to_end,
                outcome_of_lease || jsonb_build_object(
                    'attempt', j.attempts,
                    'coalesced_with', jsonb_build_object(
                        'count', cardinality(settled.job_ids) - 1,
                        'first', to_jsonb((array_remove(settled.job_ids[:21], j.id))[:20]))) as results
        ) as n
        where n.is_to_end or j.results is distinct from n.results
    ));
    if not is_over then
        return;
    end if;

    update stats_pipeline.attempt as a
    set ended_at = clock_timestamp(), outcome = j.status, error = j.error_message
    from public.background_job_status as j
    where a.lease_id = this_lease and j.id = a.job_id and a.job_id = any(written)
        and a.outcome is distinct from j.status;
    perform stats_pipeline.withdraw_attempts(this_lease);
    perform stats_pipeline.archive_messages(written);
end;
$$;

revoke all on function stats_pipeline.settle_lease(uuid, boolean, integer) from public, anon, authenticated;
