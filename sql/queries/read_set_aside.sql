-- The payload of an enqueue that was set aside; waits for another caller that already has it.
select detail
from stats_pipeline.set_aside
where what = 'enqueue' and key = %(key)s
for update;
