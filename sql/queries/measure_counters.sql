-- The counters, per bucket: `le` is the bucket's upper bound, `bounds` are those of all buckets of the metric.
select c.metric, c.label, c.detail, c.le, c.observations, c.total, stats_pipeline.duration_bounds(c.metric) as bounds
from stats_pipeline.counters() as c;
