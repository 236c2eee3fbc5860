-- What a run works on, what it has done, and which cache tags that made stale.

-- A request is known by its tenant and requestId, so that one that is sent twice makes one job.
create table stats_pipeline.job_request (
    tenant_key text not null, -- the tenant's uuid, or 'default'
    request_id text not null,
    -- Deferred, because the request is entered just before its job.
    job_id uuid not null unique
        references public.background_job_status (id) on delete cascade deferrable initially deferred,
    primary key (tenant_key, request_id)
);

insert into stats_pipeline.job_request (tenant_key, request_id, job_id)
select distinct on (coalesce(tenant_id::text, 'default'), job_payload ->> 'requestId')
    coalesce(tenant_id::text, 'default'),
    job_payload ->> 'requestId',
    id
from public.background_job_status
where job_type = 'stats_update' and jsonb_typeof(job_payload -> 'requestId') = 'string'
order by coalesce(tenant_id::text, 'default'), job_payload ->> 'requestId', created_at;
set constraints all immediate; -- while checks of these rows are pending, the table cannot be altered

-- One row from the moment jobs are leased for a tenant, or a run launched by hand starts, to the end of its computing.
create table stats_pipeline.run (
    id uuid primary key default gen_random_uuid(), -- the lease; never the same after a restore
    tenant_id uuid,
    tenant_key text not null generated always as (coalesce(tenant_id::text, 'default')) stored,
    job_ids uuid[] not null,
    functions text[], -- the RPCs this run calls; null until it is claimed
    run_id text unique, -- Dagster's; null until it is claimed
    leased_at timestamptz not null default now(),
    lease_until timestamptz not null, -- an unclaimed lease is void after this
    claimed_at timestamptz,
    ended_at timestamptz,
    outcome text check (outcome in ('succeeded', 'failed', 'expired', 'died')),
    constraint run_claimed_has_run_id check ((run_id is null) = (claimed_at is null)),
    constraint run_ended_has_outcome check ((ended_at is null) = (outcome is null))
);
-- One open run per tenant: the database's promise, whatever launched it.
create unique index run_one_open_per_tenant on stats_pipeline.run (tenant_key) where ended_at is null;

-- Every attempt of every job, kept whatever became of it.
create table stats_pipeline.attempt (
    job_id uuid not null,
    attempt integer not null check (attempt > 0),
    run_id text not null,
    started_at timestamptz not null default now(),
    ended_at timestamptz,
    outcome text check (outcome in ('completed', 'failed', 'died')),
    error text,
    primary key (job_id, attempt)
);
create index attempt_run_id on stats_pipeline.attempt (run_id);

-- How each function of a run is getting on. 'retrying' is a failed try with another one to come.
create table stats_pipeline.function_result (
    run_id text not null,
    rpc text not null,
    status text not null check (status in ('success', 'failed', 'retrying')),
    attempts integer not null check (attempts > 0),
    duration_ms integer not null check (duration_ms >= 0),
    error text,
    recorded_at timestamptz not null default now(),
    primary key (run_id, rpc)
);

-- Tags that must be invalidated, written in the transaction that made them stale. Rows are only ever added and
-- marked: a tag that goes stale again while it is being delivered has a second row, which stays due.
create table stats_pipeline.outbox (
    id bigint generated always as identity primary key,
    run_id text not null,
    rpc text not null,
    tag text not null,
    due_at timestamptz not null default now(),
    delivered_at timestamptz
);
create index outbox_run_id on stats_pipeline.outbox (run_id);
create index outbox_due on stats_pipeline.outbox (id) where delivered_at is null;

alter table stats_pipeline.job_request enable row level security;
alter table stats_pipeline.run enable row level security;
alter table stats_pipeline.attempt enable row level security;
alter table stats_pipeline.function_result enable row level security;
alter table stats_pipeline.outbox enable row level security;
