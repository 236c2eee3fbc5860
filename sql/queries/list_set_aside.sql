-- Everything that was set aside and is retried, oldest first.
select s.what, s.key, s.reason, s.since, s.tries, s.next_try_at
from stats_pipeline.set_aside as s
order by s.since
limit 100;
