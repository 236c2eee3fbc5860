-- Bring a run and its jobs up to what has been recorded. Idempotent, and right whoever calls it and in whatever order:
-- when the last function is in, the run ends and the tenant is free for the next one; when no tag is due any more, its
-- jobs end and their messages are archived. Tags still due after deadline_seconds fail the job, and complete it when
-- they are delivered after all.
create or replace function stats_pipeline.settle_run(
    dagster_run_id text,
    cache_configured boolean,
    deadline_seconds integer
) returns void
language plpgsql set search_path = '' as $$
declare
    settled stats_pipeline.run;
    outcome_of_run jsonb;
    failed_rpcs text;
    tags_due boolean;
    is_late boolean;
begin
    -- The lock comes first, so that the statements after it see what every earlier caller has recorded.
    select r.* into settled from stats_pipeline.run as r where r.run_id = dagster_run_id for update;
    if not found or settled.outcome = 'died' then
        return;
    end if;
    outcome_of_run := stats_pipeline.run_results(dagster_run_id, cache_configured);

    if settled.ended_at is null
        and (outcome_of_run ->> 'successful_functions')::integer + (outcome_of_run ->> 'failed_functions')::integer
        >= (outcome_of_run ->> 'total_functions')::integer
    then
        update stats_pipeline.run as r
        set ended_at = clock_timestamp(),
            outcome = case when (outcome_of_run ->> 'failed_functions')::integer = 0 then 'succeeded' else 'failed' end
        where r.id = settled.id
        returning r.* into settled;
        perform pg_notify('stats_pipeline_work', ''); -- the tenant's waiting jobs can be leased now
    end if;

    tags_due := cache_configured and jsonb_array_length(outcome_of_run #> '{cache,pending}') > 0;
    is_late := settled.ended_at < clock_timestamp() - make_interval(secs => deadline_seconds);

    update public.background_job_status as j
    set results = n.results
    from public.background_job_status as o
    cross join lateral (
        select outcome_of_run || jsonb_build_object(
            'attempt', o.attempts,
            'coalesced_with', to_jsonb(array_remove(settled.job_ids, o.id))) as results
    ) as n
    where j.run_id = dagster_run_id and o.id = j.id and o.results is distinct from n.results;

    if settled.ended_at is null or (tags_due and not is_late) then
        return;
    end if;

    select string_agg(f.rpc, ', ' order by f.rpc) into failed_rpcs
    from stats_pipeline.function_result as f
    where f.run_id = dagster_run_id and f.status = 'failed';

    update public.background_job_status as j
    set status = case when settled.outcome = 'succeeded' and not tags_due then 'completed' else 'failed' end,
        completed_at = clock_timestamp(),
        error_message = nullif(concat_ws('; ',
            'Failed functions: ' || failed_rpcs,
            case when tags_due then 'Cache tags not delivered: '
                || (select string_agg(t.tag, ', ') from jsonb_array_elements_text(outcome_of_run #> '{cache,pending}') as t (tag))
            end), '')
    where j.run_id = dagster_run_id
        and (j.status = 'processing' or (j.status = 'failed' and settled.outcome = 'succeeded' and not tags_due));

    update stats_pipeline.attempt as a
    set ended_at = clock_timestamp(), outcome = j.status, error = j.error_message
    from public.background_job_status as j
    where a.run_id = dagster_run_id and j.id = a.job_id and j.run_id = dagster_run_id
        and a.outcome is distinct from j.status;

    perform pgmq.archive('stats_update'::text, array_agg(j.msg_id))
    from public.background_job_status as j
    where j.run_id = dagster_run_id and j.msg_id is not null
    having count(*) > 0;
end;
$$;

revoke all on function stats_pipeline.settle_run(text, boolean, integer) from public, anon, authenticated;
