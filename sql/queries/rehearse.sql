-- Whether a job would go through all of its life here; nothing of it is left.
select r.step, r.problem, r.state
from stats_pipeline.rehearse(%(functions)s) as r;
