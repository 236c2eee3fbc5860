-- The functions with these signatures and the triggers that call them, each with a digest that shows a change. The
-- privileges of roles that we do not know are ignored.
select s.signature, s.signature as object,
    md5(jsonb_build_array(
        p.prosrc, l.lanname, p.prokind, p.provolatile, p.prosecdef, p.proisstrict, p.proparallel, p.proconfig,
        pg_get_function_arguments(p.oid), pg_get_function_result(p.oid),
        (
            select jsonb_agg(distinct coalesce(r.rolname, 'public') order by coalesce(r.rolname, 'public'))
            from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as g
            left join pg_catalog.pg_roles as r on r.oid = g.grantee
            where g.grantee = 0 or r.rolname in ('anon', 'authenticated', 'service_role')
        ))::text) as definition
from unnest(%(signatures)s::text[]) as s (signature)
join pg_catalog.pg_proc as p on p.oid = to_regprocedure(s.signature)
join pg_catalog.pg_language as l on l.oid = p.prolang
union all
select s.signature, 'trigger ' || t.tgname,
    pg_get_triggerdef(t.oid) || case when t.tgenabled in ('O', 'A') then '' else ' (disabled)' end
from unnest(%(signatures)s::text[]) as s (signature)
join pg_catalog.pg_trigger as t on t.tgfoid = to_regprocedure(s.signature)
where not t.tgisinternal and t.tgrelid = to_regclass('public.background_job_status');
