-- Records a successful refresh in cache_metadata. The wall clock and not now(): a transaction that waited for another
-- must not move the stamp back to before it. An existing label is kept unless relabel says otherwise.
create or replace function stats_pipeline.stamp_cache(
    target_tenant_id uuid,
    stamped_key text,
    label text,
    relabel boolean default false
)
returns void
language sql
set search_path = pg_catalog, pg_temp
as $$
    insert into public.cache_metadata as stamp (cache_key, tenant_id, last_invalidated, dependency_type)
    values (stamped_key, target_tenant_id, clock_timestamp(), label)
    on conflict (cache_key, tenant_id) do update
    set
        last_invalidated = excluded.last_invalidated,
        dependency_type = case when relabel then excluded.dependency_type else stamp.dependency_type end;
$$;

revoke all on function stats_pipeline.stamp_cache(uuid, text, text, boolean) from public, anon, authenticated;
grant execute on function stats_pipeline.stamp_cache(uuid, text, text, boolean) to service_role;
