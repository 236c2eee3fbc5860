-- The functions that a claimed run need not call, because its dead predecessor has. A statement of its own: the one
-- that claims does not see what its claim writes.
select f.rpc
from stats_pipeline.function_result as f
join stats_pipeline.run as r on r.run_id = f.run_id
where r.run_id = %(run_id)s and f.status = 'success' and f.recorded_at <= r.claimed_at;
