-- The functions that a claimed lease need not call, because its lost predecessor has. A separate statement, because the
-- claiming one does not see the rows it writes.
select f.rpc
from stats_pipeline.function_result as f
join stats_pipeline.lease as l on l.id = f.lease_id
where l.id = %(lease_id)s and f.status = 'success' and f.recorded_at <= l.claimed_at;
