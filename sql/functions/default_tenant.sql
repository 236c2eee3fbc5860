-- The club for which the stats functions compute when they are called without one: the constant default of their
-- argument `target_tenant_id`. Null if there is none, or if the functions differ.
create or replace function stats_pipeline.default_tenant() returns uuid
language sql stable set search_path = pg_catalog, pg_temp as $$
select case when count(distinct d.tenant) = 1 then min(d.tenant)::uuid end
from (
    select substring(pg_get_function_arg_default(p.oid, 1) from '^''([-0-9a-f]{36})''::uuid$') as tenant
    from pg_catalog.pg_depend as of_public -- unlike pg_proc it has an index on the schema
    join pg_catalog.pg_proc as p on p.oid = of_public.objid
    where of_public.refclassid = 'pg_namespace'::regclass and of_public.refobjid = 'public'::regnamespace
        and of_public.classid = 'pg_proc'::regclass and p.pronargs = 1 and p.pronargdefaults = 1
        and p.proargtypes[0] = 'uuid'::regtype and p.proargnames[1] = 'target_tenant_id'
) as d;
$$;

revoke all on function stats_pipeline.default_tenant() from public, anon, authenticated;
