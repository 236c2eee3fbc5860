-- Sessions of the admin's page that were logged out: all web processes refuse their cookies, also after a restart.
-- A row stays until the cookie would have expired.
create table stats_pipeline.ended_session (
    session text primary key,
    expires_at timestamptz not null
);
alter table stats_pipeline.ended_session enable row level security;
