-- The sessions that were logged out and whose cookies may still be valid.
select session from stats_pipeline.ended_session;
