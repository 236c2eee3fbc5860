-- The checks of `doctor` that work in a database without any object of ours. The stats functions are those that the
-- role may call, with the tenant or, if no tenants are set, without.
select
    current_setting('server_version_num')::integer as server_version,
    split_part(current_setting('server_version'), ' ', 1) as server,
    current_setting('max_connections')::integer as max_connections,
    greatest(
        current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer
        - (select sum(d.numbackends) from pg_catalog.pg_stat_database as d), 0
    )::integer as free_connections,
    (select e.extversion from pg_catalog.pg_extension as e where e.extname = 'pgmq') as pgmq_version,
    to_regprocedure('pgmq.create(text)') is not null as has_pgmq,
    to_regclass('stats_pipeline.migration') is not null as is_migrated,
    array(
        select distinct p.proname::text
        from pg_catalog.pg_proc as p
        where p.pronamespace = 'public'::regnamespace and p.proname = any(%(rpcs)s)
            and case when %(with_tenant)s
                then p.pronargs = 1 and p.proargtypes[0] = 'uuid'::regtype
                else p.pronargs - p.pronargdefaults = 0
            end
            and has_function_privilege(p.oid, 'execute')
    ) as callable_rpcs;
