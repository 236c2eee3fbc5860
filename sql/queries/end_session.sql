-- Log out a session, and delete those whose cookies have expired; a row if it was not logged out before.
with forgotten as (
    delete from stats_pipeline.ended_session where expires_at < now()
)
insert into stats_pipeline.ended_session (session, expires_at)
values (%(session)s, now() + make_interval(hours => %(hours)s))
on conflict do nothing
returning session;
