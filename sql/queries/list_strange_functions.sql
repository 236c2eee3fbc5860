-- Problems that re-applying our functions does not solve: other functions with the same names, which make a call
-- ambiguous, and an owner without the privileges that callers need through the function.
select 'the function ' || o.oid::regprocedure || ' has the name of ours' as problem,
    'drop function ' || o.oid::regprocedure as sql
from unnest(%(signatures)s::text[]) as s (signature)
join pg_catalog.pg_proc as p on p.oid = to_regprocedure(s.signature)
join pg_catalog.pg_proc as o on o.pronamespace = p.pronamespace and o.proname = p.proname and o.oid <> p.oid
where o.oid <> all(array(select to_regprocedure(x.signature)::oid from unnest(%(signatures)s::text[]) as x (signature)))
union all
select 'the function ' || p.oid::regprocedure || ' belongs to ' || p.proowner::regrole || ', who may not touch '
    || c.oid::regclass,
    'alter function ' || p.oid::regprocedure || ' owner to ' || c.relowner::regrole
from unnest(%(signatures)s::text[]) as s (signature)
join pg_catalog.pg_proc as p on p.oid = to_regprocedure(s.signature) and p.prosecdef
join pg_catalog.pg_class as c on c.oid = to_regclass('public.background_job_status')
where not pg_has_role(p.proowner, c.relowner, 'usage')
order by 1;
