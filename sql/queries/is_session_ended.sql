-- Whether a session was logged out.
select exists (select from stats_pipeline.ended_session where session = %(session)s) as is_ended;
