-- How many rows of the tenant each table has now. A table that the app does not have counts as empty.
with club as materialized (select coalesce(%(tenant_id)s::uuid, stats_pipeline.default_tenant()) as tenant)

select t.table_name, stats_pipeline.count_rows(t.table_name, c.tenant) as row_count
from unnest(%(tables)s::text[]) as t (table_name)
cross join club as c;
