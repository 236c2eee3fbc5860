-- The payload of an enqueue that was set aside; another caller that has it already is waited for.
select detail
from stats_pipeline.set_aside
where what = 'enqueue' and key = %(key)s
for update;
