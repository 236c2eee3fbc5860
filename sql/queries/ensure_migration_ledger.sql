-- The list of applied files, which must exist before the first of them.
create schema if not exists stats_pipeline;
create table if not exists stats_pipeline.migration (
    kind text not null,
    name text not null,
    checksum text not null,
    applied_at timestamptz not null default now(),
    primary key (kind, name)
);
alter table stats_pipeline.migration
    add column if not exists made jsonb, -- the objects of a function file, as the server described them then
    enable row level security;
