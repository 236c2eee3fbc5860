-- The jobs whose rows a lease may write, all of its club: those its run is processing, with its open attempt; and those
-- that it has ended, as long as no other end was written there since.
create or replace function stats_pipeline.jobs_of_lease(this_lease uuid)
returns setof public.background_job_status
language sql stable set search_path = pg_catalog, pg_temp as $$
with d as materialized (select stats_pipeline.default_tenant() as default_tenant) -- once, not for each row

select j.*
from d
cross join stats_pipeline.lease as l
join stats_pipeline.attempt as a on a.lease_id = l.id
join public.background_job_status as j on j.id = a.job_id and j.run_id = l.run_id and j.job_type = 'stats_update'
where l.id = this_lease
    and stats_pipeline.club(j.tenant_id, j.job_payload, d.default_tenant)
        is not distinct from nullif(l.tenant_id, d.default_tenant)
    and (
        (j.status = 'processing' and a.outcome is null)
        or (j.status = a.outcome and j.error_message is not distinct from a.error)
    );
$$;

revoke all on function stats_pipeline.jobs_of_lease(uuid) from public, anon, authenticated;
