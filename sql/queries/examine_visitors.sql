-- Whether the app's visitors (role anon) may read users and errors in the job table: which columns, and under which
-- conditions of the policies (none: every row). No row if they may not.
select v.columns, v.conditions
from pg_catalog.pg_roles as anon
join pg_catalog.pg_class as c on c.oid = to_regclass('public.background_job_status')
cross join lateral (
    select
        array(
            select a.attname::text
            from pg_catalog.pg_attribute as a
            where a.attrelid = c.oid and a.attname in ('job_payload', 'error_message')
                and has_column_privilege(anon.oid, c.oid, a.attnum, 'select')
            order by a.attname
        ) as columns,
        not c.relrowsecurity or anon.rolbypassrls or anon.rolsuper as is_unguarded
) as may
cross join lateral (
    select
        coalesce(bool_or(p.polpermissive and p.condition <> 'false'), false)
        and not coalesce(bool_or(not p.polpermissive and p.condition = 'false'), false) as is_let_in,
        coalesce(bool_or(p.polpermissive and p.condition = 'true'), false) as is_unconditional,
        string_agg(distinct p.condition, ' or ') filter (where p.polpermissive and p.condition <> 'false') as any_of,
        string_agg(distinct p.condition, ' and ') filter (where not p.polpermissive and p.condition <> 'true') as all_of
    from (
        select policy.polpermissive, coalesce(pg_get_expr(policy.polqual, policy.polrelid), 'true') as condition
        from pg_catalog.pg_policy as policy
        where policy.polrelid = c.oid and policy.polcmd in ('r', '*') and exists (
            select from unnest(policy.polroles) as r (id)
            where case when r.id = 0 then true else pg_has_role(anon.oid, r.id, 'usage') end
        )
    ) as p
) as policies
cross join lateral (
    select
        may.columns,
        case when not may.is_unguarded then
            concat_ws(' and ', case when not policies.is_unconditional then policies.any_of end, policies.all_of)
        else '' end as conditions
) as v
where anon.rolname = 'anon' and has_schema_privilege(anon.oid, 'public', 'usage')
    and v.columns <> '{}' and (may.is_unguarded or policies.is_let_in);
