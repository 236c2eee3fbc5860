-- What one function of one run has made stale and the app has not yet taken.
select id, tag
from stats_pipeline.outbox
where run_id = %(run_id)s and rpc = %(rpc)s and delivered_at is null;
