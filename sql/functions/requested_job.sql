-- The existing job of a payload's requestId, or null.
create or replace function stats_pipeline.requested_job(payload jsonb) returns public.background_job_status
language sql stable set search_path = pg_catalog, pg_temp as $$
select j.*
from stats_pipeline.job_request as r
join public.background_job_status as j on j.id = r.job_id
where r.tenant_key = stats_pipeline.tenant_key(stats_pipeline.club(null, payload, stats_pipeline.default_tenant()))
    and r.request_id = payload ->> 'requestId';
$$;

revoke all on function stats_pipeline.requested_job(jsonb) from public, anon, authenticated;
