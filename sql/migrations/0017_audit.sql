-- Who did what, and from where: logins, launches, retries, and what was refused. Refused tries have an hour and a
-- number in it, so that guesses without end do not fill the table: see the function record_audit.
create table stats_pipeline.audit (
    id bigint generated always as identity primary key,
    at timestamptz not null default clock_timestamp(), -- of several tries in one row, the last one's
    action text not null,
    outcome text not null check (outcome in ('done', 'refused')),
    who text not null,
    role text not null,
    address text not null,
    about text,
    times integer not null default 1 check (times > 0),
    hour timestamptz, -- the hour of a refused try, its network, and which row of that hour it is
    network text,
    number integer,
    constraint audit_refused_has_hour check ((outcome = 'refused') = (hour is not null)),
    constraint audit_hour_has_number check (hour is null or (network is not null and number is not null))
);
create index audit_at on stats_pipeline.audit (at, id);
create unique index audit_refused on stats_pipeline.audit (hour, network, action, number) where hour is not null;
alter table stats_pipeline.audit enable row level security;
