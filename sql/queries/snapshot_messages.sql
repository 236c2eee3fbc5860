-- The messages that are out of step: they name a job, but are not the message of one that is still to be done.
select s.msg_id
from stats_pipeline.stale_messages(null) as s (msg_id);
