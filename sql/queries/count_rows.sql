-- How many rows of the tenant each table has now. A table the app does not have counts no rows.
select t.table_name, stats_pipeline.count_rows(t.table_name, %(tenant_id)s::uuid) as row_count
from unnest(%(tables)s::text[]) as t (table_name);
