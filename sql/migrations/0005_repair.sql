-- What repairing needs to know: when a run was last seen alive, and how the app has been answering.
alter table stats_pipeline.run
    add column seen_at timestamptz; -- the run's own heartbeat; null until it is claimed

alter table stats_pipeline.outbox
    add column tries integer not null default 0,
    add column next_try_at timestamptz not null default now();

-- One row per cache route that is not answering; no row means all is well.
create table stats_pipeline.endpoint (
    url text primary key,
    failures integer not null check (failures > 0),
    failing_since timestamptz not null default now(),
    next_try_at timestamptz not null,
    last_error text not null
);
alter table stats_pipeline.endpoint enable row level security;
