-- The sessions that were logged out and whose cookies may not have expired.
select session from stats_pipeline.ended_session;
