-- Start computing, or find out that a sibling op of the same run has started already.
select
    c.tenant_id,
    c.job_ids,
    array(
        select f.rpc
        from stats_pipeline.function_result as f
        where f.run_id = c.run_id and f.status = 'success' and f.recorded_at <= c.claimed_at
    ) as carried_over
from stats_pipeline.claim_run(
    %(run_id)s::text, %(lease_id)s::uuid, %(functions)s::text[], %(tenant_id)s::uuid, %(payload)s::jsonb) as c;
