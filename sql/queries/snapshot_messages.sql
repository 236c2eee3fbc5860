-- The inconsistent messages: they name a job, but are not the message of an unfinished one.
select s.msg_id
from stats_pipeline.stale_messages(null) as s (msg_id);
