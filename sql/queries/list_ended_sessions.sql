-- Those of these sessions that were logged out.
select session from stats_pipeline.ended_session
where session = any(%(sessions)s);
