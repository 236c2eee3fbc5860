-- The number of a tenant's rows in a table of the app's, or of all rows if the table has no tenant column; 0 if there
-- is no such table.
create or replace function stats_pipeline.count_rows(table_name text, tenant uuid) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    counted constant regclass := to_regclass(format('public.%I', table_name));
    has_tenant constant boolean := exists (
        select from pg_catalog.pg_attribute as a
        where a.attrelid = counted and a.attname = 'tenant_id' and not a.attisdropped
    );
    row_count bigint := 0;
begin
    if counted is not null then
        execute format('select count(*) from %s', counted) || case when has_tenant then ' where tenant_id = $1' else '' end
        into row_count
        using tenant;
    end if;
    return row_count;
end;
$$;

revoke all on function stats_pipeline.count_rows(text, uuid) from public, anon, authenticated;
