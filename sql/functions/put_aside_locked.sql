-- Set aside jobs whose rows or messages another transaction holds.
create or replace function stats_pipeline.put_aside_locked(job_ids uuid[]) returns void
language sql set search_path = pg_catalog, pg_temp as $$
select stats_pipeline.put_aside('job', j.id::text, 'Another transaction holds its row or its message', '55P03')
from unnest(job_ids) as j (id);
$$;

revoke all on function stats_pipeline.put_aside_locked(uuid[]) from public, anon, authenticated;
