-- Take waiting jobs, one row per tenant.
select lease_id, tenant_id, jobs
from stats_pipeline.lease_jobs(%(lease_seconds)s::integer, %(max_runs)s::integer);
