-- Whether clubs that do not exist are rejected, and which of these do not exist.
select
    stats_pipeline.tenants_are_known() as are_known,
    array(
        select t.id
        from unnest(%(tenants)s::uuid[]) as t (id)
        where stats_pipeline.tenant_problem(nullif(t.id, stats_pipeline.default_tenant())) is not null
    ) as unknown;
