-- The existing objects, part by part: definition, the part it belongs to, the SQL that creates it, and the SQL that
-- changes a different one, which may be run automatically if `is_safe`. For a new database this is `sql/schema.json`;
-- any other database is compared with that. The app's own part of the job table counts only as far as the pipeline
-- needs it: names, expressions and additional objects are the app's.
with tables as (
    select c.oid, c.oid::regclass::text as name, c.relpersistence, c.relacl,
        c.relnamespace = to_regnamespace('public') as is_apps
    from pg_catalog.pg_class as c
    where c.relkind = 'r'
        and (c.relnamespace = to_regnamespace('stats_pipeline') or c.oid = to_regclass('public.background_job_status'))
),
columns as (
    select t.oid, t.name as table_name, t.is_apps, a.attnum, a.attname, a.attnotnull as is_needed,
        quote_ident(a.attname) as name, format_type(a.atttypid, a.atttypmod) as type,
        case
            when a.attidentity <> '' then ' generated always as identity'
            when a.attgenerated <> '' then
                ' generated always as (' || pg_get_expr(d.adbin, d.adrelid) || ') stored'
            else ''
        end as generated,
        case when a.attgenerated = '' then pg_get_expr(d.adbin, d.adrelid) end as default_value
    from tables as t
    join pg_catalog.pg_attribute as a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
    left join pg_catalog.pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
),
texts as (
    select *,
        name || ' ' || type || generated || coalesce(' default ' || default_value, '')
        || case when is_needed then ' not null' else '' end as text
    from columns
),
constraints as (
    select t.name as table_name, t.is_apps, c.contype, c.conname, c.conrelid, pg_get_constraintdef(c.oid) as definition,
        'constraint ' || quote_ident(c.conname) || ' ' || pg_get_constraintdef(c.oid) as text,
        (
            select string_agg(a.attname, ', ' order by a.attnum) from pg_catalog.pg_attribute as a
            where a.attrelid = c.conrelid and a.attnum = any(c.conkey)
        ) as column_names
    from tables as t
    join pg_catalog.pg_constraint as c on c.conrelid = t.oid and c.contype in ('p', 'u', 'c', 'f')
),
parts (rank, what, part_of, definition, make, change, is_safe) as (
    select 1, 'the table ' || t.name, null, t.relpersistence::text,
        'create table ' || t.name || ' (' || concat_ws(', ',
            (select string_agg(c.text, ', ' order by c.attnum) from texts as c where c.oid = t.oid),
            (
                select string_agg(c.text, ', ' order by c.contype = 'c', c.conname) from constraints as c
                where c.conrelid = t.oid and c.contype <> 'f'
            )) || '); revoke all on ' || t.name || ' from public, anon, authenticated',
        'alter table ' || t.name || ' set logged', true
    from tables as t
    union all
    select 1, 'the queue stats_update', null, '', 'select pgmq.create(''stats_update''::text)', null, true
    where to_regclass('pgmq.q_stats_update') is not null and to_regclass('pgmq.a_stats_update') is not null
    union all
    select 2, 'the column ' || table_name || '.' || name, 'the table ' || table_name,
        case when is_apps then '' else type || generated end,
        'alter table ' || table_name || ' add column ' || text,
        'alter table ' || table_name || ' alter column ' || name || ' type ' || type
        || ' using ' || name || '::text::' || type, false
    from texts
    union all
    select 3, 'the default of ' || table_name || '.' || name, 'the column ' || table_name || '.' || name,
        case when is_apps then '' else default_value end,
        'alter table ' || table_name || ' alter column ' || name || ' set default ' || default_value,
        'alter table ' || table_name || ' alter column ' || name || ' set default ' || default_value, true
    from columns
    where default_value is not null
    union all
    select 4, 'not null of ' || table_name || '.' || name, 'the column ' || table_name || '.' || name, '',
        'alter table ' || table_name || ' alter column ' || name || ' set not null', null, true
    from columns
    where is_needed and (not is_apps or attname = 'status')
    union all
    select 5 + (contype = 'f')::integer, 'the constraint ' || quote_ident(conname) || ' of ' || table_name,
        'the table ' || table_name, definition, 'alter table ' || table_name || ' add ' || text,
        'alter table ' || table_name || ' drop constraint ' || quote_ident(conname) || ', add ' || text, true
    from constraints
    where not is_apps
    union all
    select distinct on (contype = 'c', column_names)
        5, case when contype = 'c' then 'a check' else 'a key' end || ' on ' || column_names || ' of ' || table_name,
        'the table ' || table_name, '', 'alter table ' || table_name || ' add ' || text, null, true
    from constraints
    where is_apps and (contype = 'c' and column_names = 'status' or contype in ('p', 'u') and column_names = 'id')
    union all
    select 7, 'the index ' || i.indexrelid::regclass, 'the table ' || t.name,
        -- The app's plan has these two as well: it may have created them differently.
        case
            when not i.indisvalid then 'invalid'
            when c.relname in ('idx_background_job_status_created_at', 'idx_background_job_status_status') then ''
            else pg_get_indexdef(i.indexrelid)
        end,
        pg_get_indexdef(i.indexrelid),
        'drop index ' || i.indexrelid::regclass || '; ' || pg_get_indexdef(i.indexrelid), true
    from tables as t
    join pg_catalog.pg_index as i on i.indrelid = t.oid
    join pg_catalog.pg_class as c on c.oid = i.indexrelid
    where not exists (select from pg_catalog.pg_constraint as k where k.conindid = i.indexrelid)
    union all
    select 8, 'row security of ' || t.oid::regclass, t.part_of, '',
        'alter table ' || t.oid::regclass || ' enable row level security', null, true
    from (
        select t.oid, 'the table ' || t.name from tables as t
        union all
        select to_regclass(q.name)::oid, 'the queue stats_update'
        from (values ('pgmq.q_stats_update'), ('pgmq.a_stats_update')) as q (name)
    ) as t (oid, part_of)
    join pg_catalog.pg_class as c on c.oid = t.oid
    where c.relrowsecurity
    union all
    select 9, 'the policy ' || p.policyname || ' of ' || t.name, 'the table ' || t.name,
        concat_ws(' ', lower(p.permissive), lower(p.cmd), p.roles::text, p.qual, p.with_check), d.make,
        'drop policy ' || quote_ident(p.policyname) || ' on ' || t.name || '; ' || d.make, true
    from tables as t
    join pg_catalog.pg_policies as p
        on to_regclass(quote_ident(p.schemaname) || '.' || quote_ident(p.tablename)) = t.oid
    cross join lateral (
        select 'create policy ' || quote_ident(p.policyname) || ' on ' || t.name || ' for ' || lower(p.cmd) || ' to '
            || array_to_string(p.roles, ', ') || coalesce(' using (' || p.qual || ')', '')
            || coalesce(' with check (' || p.with_check || ')', '')
    ) as d (make)
    union all
    select 9, 'the right of ' || r.rolname || ' to ' || lower(g.privilege_type) || ' on ' || t.name,
        'the table ' || t.name, '', 'grant ' || lower(g.privilege_type) || ' on ' || t.name || ' to ' || r.rolname,
        null, true
    from tables as t
    cross join lateral aclexplode(t.relacl) as g
    join pg_catalog.pg_roles as r on r.oid = g.grantee and r.rolname in ('anon', 'authenticated', 'service_role')
    where g.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
    union all
    select 9, 'the rights of ' || r.name || ' on the schema stats_pipeline', null, coalesce(g.rights, ''), null,
        'revoke all on schema stats_pipeline from ' || r.name
        || case when r.name = 'service_role' then '; grant usage on schema stats_pipeline to service_role' else '' end,
        true
    from pg_catalog.pg_namespace as n
    cross join (values ('public'), ('anon'), ('authenticated'), ('service_role')) as r (name)
    cross join lateral (
        select string_agg(distinct lower(g.privilege_type), ', ') from aclexplode(n.nspacl) as g
        where g.grantee = case when r.name = 'public' then 0 else to_regrole(r.name) end
    ) as g (rights)
    where n.nspname = 'stats_pipeline'
)
select what, part_of, definition, make, change, is_safe
from parts
order by rank, what collate "C";
