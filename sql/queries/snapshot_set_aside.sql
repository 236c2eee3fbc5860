-- Failed repairs that are not due yet, and enqueues that are due for a retry.
select s.what, s.key
from stats_pipeline.set_aside as s
where (s.what = 'repair' and s.next_try_at > now()) or (s.what = 'enqueue' and s.next_try_at <= now());
