-- The clubs that have queued jobs and no open lease, the longest-waiting first, each with the names under which its
-- rows have it. Reads one row per club, however many are waiting.
create or replace function stats_pipeline.waiting_clubs() returns table (tenant_id uuid, names text[])
language sql stable set search_path = pg_catalog, pg_temp as $$
with recursive d as materialized (select stats_pipeline.default_tenant() as default_tenant), -- once, not for each row

named as (
    (
        select left(coalesce(j.tenant_id::text, j.job_payload ->> 'tenantId', ''), 100) as name, j.msg_id
        from public.background_job_status as j
        where j.status = 'queued' and j.job_type = 'stats_update'
        order by 1, 2
        limit 1
    )
    union all
    select following.name, following.msg_id
    from named as n
    cross join lateral (
        select left(coalesce(j.tenant_id::text, j.job_payload ->> 'tenantId', ''), 100) as name, j.msg_id
        from public.background_job_status as j
        where j.status = 'queued' and j.job_type = 'stats_update'
            and left(coalesce(j.tenant_id::text, j.job_payload ->> 'tenantId', ''), 100) > n.name
        order by 1, 2
        limit 1
    ) as following
),

clubs as (
    select c.tenant_id, array_agg(n.name) as names, min(n.msg_id) as first_msg_id
    from d
    cross join named as n
    cross join lateral (
        select stats_pipeline.club(null, jsonb_build_object('tenantId', n.name), d.default_tenant) as tenant_id
    ) as c
    group by c.tenant_id
)

select c.tenant_id, c.names
from clubs as c
where stats_pipeline.tenant_key(c.tenant_id) not in (select stats_pipeline.aside('club'))
    and not exists (
        select from stats_pipeline.lease as l
        where l.tenant_key = stats_pipeline.tenant_key(c.tenant_id) and l.ended_at is null
    )
order by c.first_msg_id;
$$;

revoke all on function stats_pipeline.waiting_clubs() from public, anon, authenticated;
