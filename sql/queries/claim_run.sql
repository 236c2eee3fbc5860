-- Start computing, or find out that a sibling op of the same run has started already.
select c.tenant_id, c.job_ids, c.outcome
from stats_pipeline.claim_run(
    %(run_id)s::text, %(lease_id)s::uuid, %(functions)s::text[], %(tenant_id)s::uuid, %(payload)s::jsonb) as c;
