-- The schema of version 0.1.0, as its `migrate` made it: the ledger, the migrations and the functions of its `sql/` folder,
-- without their comments, and then one row or more in every table, made by its functions.

begin;
create schema if not exists stats_pipeline;
create table if not exists stats_pipeline.migration (
    kind text not null,
    name text not null,
    checksum text not null,
    applied_at timestamptz not null default now(),
    primary key (kind, name)
);
alter table stats_pipeline.migration enable row level security;

set check_function_bodies = off;

do $$
begin
    if not exists (select from pg_catalog.pg_roles where rolname in ('anon', 'authenticated', 'service_role')) then
        create role anon nologin;
        create role authenticated nologin;
        create role service_role nologin bypassrls;
    end if;
exception
    when duplicate_object or unique_violation then null; -- another database of this server is being migrated
end;
$$;

revoke all on schema stats_pipeline from public, anon, authenticated;
grant usage on schema stats_pipeline to service_role;

create table if not exists public.background_job_status (
    id uuid primary key default gen_random_uuid(),
    job_type text not null default 'stats_update',
    job_payload jsonb not null,
    status text not null check (status in ('queued', 'processing', 'completed', 'failed')),
    started_at timestamptz,
    completed_at timestamptz,
    error_message text,
    results jsonb,
    created_at timestamptz default now(),
    updated_at timestamptz default now()
);

alter table public.background_job_status
    add column if not exists tenant_id uuid,
    add column if not exists retry_of uuid,
    add column if not exists attempts integer default 0,
    add column if not exists run_id text,
    add column if not exists msg_id bigint;

create index if not exists idx_background_job_status_created_at
    on public.background_job_status (created_at desc);
create index if not exists idx_background_job_status_status
    on public.background_job_status (status);
create unique index if not exists idx_background_job_status_msg_id
    on public.background_job_status (msg_id) where msg_id is not null;
create index if not exists idx_background_job_status_run_id
    on public.background_job_status (run_id) where run_id is not null;
create index if not exists idx_background_job_status_retry_of
    on public.background_job_status (retry_of) where retry_of is not null;

do $$
begin
    if to_regprocedure('public.update_updated_at_column()') is null then
        create function public.update_updated_at_column() returns trigger
        language plpgsql set search_path = '' as $body$
        begin
            new.updated_at = now();
            return new;
        end;
        $body$;
        revoke all on function public.update_updated_at_column() from public, anon, authenticated;
    end if;
    if not exists (
        select from pg_catalog.pg_trigger
        where tgrelid = 'public.background_job_status'::regclass
            and tgname = 'update_background_job_status_updated_at'
    ) then
        create trigger update_background_job_status_updated_at
            before update on public.background_job_status
            for each row execute function public.update_updated_at_column();
    end if;
end;
$$;

alter table public.background_job_status enable row level security;
revoke all on public.background_job_status from anon, authenticated;
grant select on public.background_job_status to anon, authenticated;
grant select, insert, update, delete on public.background_job_status to service_role;
drop policy if exists background_job_status_read on public.background_job_status;
create policy background_job_status_read on public.background_job_status
    for select to anon, authenticated using (true);

select from pgmq.create('stats_update')
where not exists (select from pgmq.meta where queue_name = 'stats_update');

alter table pgmq.q_stats_update enable row level security;
alter table pgmq.a_stats_update enable row level security;

create table stats_pipeline.job_request (
    tenant_key text not null, -- the tenant's uuid, or 'default'
    request_id text not null,
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
create unique index run_one_open_per_tenant on stats_pipeline.run (tenant_key) where ended_at is null;

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

alter table stats_pipeline.run
    add column seen_at timestamptz; -- the run's own heartbeat; null until it is claimed

alter table stats_pipeline.outbox
    add column tries integer not null default 0,
    add column next_try_at timestamptz not null default now();

create table stats_pipeline.endpoint (
    url text primary key,
    failures integer not null check (failures > 0),
    failing_since timestamptz not null default now(),
    next_try_at timestamptz not null,
    last_error text not null
);
alter table stats_pipeline.endpoint enable row level security;

delete from stats_pipeline.attempt as a
where not exists (select from public.background_job_status as j where j.id = a.job_id);

alter table stats_pipeline.attempt
    add constraint attempt_job_id_fkey foreign key (job_id)
    references public.background_job_status (id) on delete cascade;

create or replace function stats_pipeline.abandon_run(
    dagster_run_id text,
    not_seen_since timestamptz,
    max_attempts integer,
    reason text
) returns boolean
language plpgsql set search_path = '' as $$
declare
    abandoned stats_pipeline.run;
begin
    perform stats_pipeline.cut_off_run(r.run_id) -- first: its sessions may hold the lock that the update needs
    from stats_pipeline.run as r
    where r.run_id = dagster_run_id and r.ended_at is null and r.seen_at <= not_seen_since;

    update stats_pipeline.run as r set ended_at = clock_timestamp(), outcome = 'died'
    where r.run_id = dagster_run_id and r.ended_at is null and r.seen_at <= not_seen_since
    returning r.* into abandoned;
    if not found then
        return false;
    end if;

    perform stats_pipeline.requeue_jobs(
        array(select j.id from public.background_job_status as j
            where j.run_id = dagster_run_id and j.status = 'processing'),
        max_attempts,
        reason || coalesce(': ' || (
            select f.error from stats_pipeline.function_result as f
            where f.run_id = dagster_run_id and f.status = 'retrying'
            order by f.recorded_at desc
            limit 1), ''));
    return true;
end;
$$;

revoke all on function stats_pipeline.abandon_run(text, timestamptz, integer, text) from public, anon, authenticated;

create or replace function stats_pipeline.admit_messages() returns void
language plpgsql set search_path = '' as $$
declare
    seen constant bigint[] := array(select v.msg_id from stats_pipeline.visible_messages() as v);
begin
    insert into public.background_job_status (job_payload, status, msg_id, created_at)
    select jsonb_build_object('timestamp', raw.enqueued_at) || jsonb_strip_nulls(raw.message), 'queued', raw.msg_id,
        raw.enqueued_at
    from (
        select distinct on (stats_pipeline.to_uuid(m.message -> 'tenantId'), m.message ->> 'requestId') m.*
        from stats_pipeline.visible_messages() as m
        where m.msg_id = any(seen) and m.job_id is null and not m.names_job
            and stats_pipeline.payload_problem(m.message) is null
            and not exists (
                select from stats_pipeline.job_request as r
                where r.tenant_key = stats_pipeline.tenant_key(stats_pipeline.to_uuid(m.message -> 'tenantId'))
                    and r.request_id = m.message ->> 'requestId'
            )
        order by stats_pipeline.to_uuid(m.message -> 'tenantId'), m.message ->> 'requestId', m.msg_id
    ) as raw;

    insert into public.background_job_status (job_payload, status, msg_id, created_at, completed_at, error_message)
    select case
            when octet_length(m.message::text) > 65536 then
                jsonb_build_object('message', left(m.message::text, 1000), 'truncated', true)
            when jsonb_typeof(m.message) = 'object' then m.message
            else jsonb_build_object('message', m.message)
        end,
        'failed', m.msg_id, m.enqueued_at, now(), 'Rejected: ' || stats_pipeline.payload_problem(m.message)
    from stats_pipeline.visible_messages() as m
    where m.msg_id = any(seen) and m.job_id is null and not m.names_job
        and stats_pipeline.payload_problem(m.message) is not null;

    update public.background_job_status as j
    set status = 'failed', completed_at = now(),
        error_message = 'Rejected: ' || stats_pipeline.payload_problem(j.job_payload)
    from stats_pipeline.visible_messages() as m
    where m.msg_id = any(seen) and j.id = m.job_id and j.status = 'queued' and stats_pipeline.payload_problem(j.job_payload) is not null;

    perform pgmq.archive('stats_update'::text, array_agg(m.msg_id))
    from stats_pipeline.visible_messages() as m
    left join public.background_job_status as j on j.id = m.job_id
    where m.msg_id = any(seen) and (j.id is null or j.status in ('completed', 'failed'))
    having count(*) > 0;
end;
$$;

revoke all on function stats_pipeline.admit_messages() from public, anon, authenticated;

create or replace function stats_pipeline.archive_stale_messages(msg_ids bigint[]) returns void
language sql set search_path = '' as $$
select pgmq.archive('stats_update'::text, array_agg(q.msg_id))
from pgmq.q_stats_update as q
left join public.background_job_status as j on j.msg_id = q.msg_id
where q.msg_id = any(msg_ids) and (j.status in ('completed', 'failed') or (j.id is null and q.message ? 'jobId'))
having count(*) > 0;
$$;

revoke all on function stats_pipeline.archive_stale_messages(bigint[]) from public, anon, authenticated;

create or replace function stats_pipeline.backoff(earlier_failures integer) returns interval
language sql volatile set search_path = '' as $$
select make_interval(secs => least(300, 2 ^ least(earlier_failures, 20)) * (0.75 + random() / 2));
$$;

revoke all on function stats_pipeline.backoff(integer) from public, anon, authenticated;

create or replace function stats_pipeline.carry_over(claimed_run uuid) returns void
language plpgsql set search_path = '' as $$
declare
    successor stats_pipeline.run;
    predecessor stats_pipeline.run;
begin
    select r.* into successor from stats_pipeline.run as r where r.id = claimed_run;
    select r.* into predecessor
    from stats_pipeline.run as r
    where r.tenant_key = successor.tenant_key and r.id <> successor.id and r.claimed_at is not null
    order by r.claimed_at desc
    limit 1;
    if not found or predecessor.outcome is distinct from 'died'
        or not (predecessor.job_ids <@ successor.job_ids and predecessor.job_ids @> successor.job_ids)
    then
        return;
    end if;

    insert into stats_pipeline.function_result (run_id, rpc, status, attempts, duration_ms)
    select successor.run_id, f.rpc, 'success', f.attempts, f.duration_ms
    from stats_pipeline.function_result as f
    where f.run_id = predecessor.run_id and f.status = 'success' and f.rpc = any(successor.functions)
    on conflict (run_id, rpc) do update -- a try of this run's own that could not claim
    set status = excluded.status, attempts = excluded.attempts, duration_ms = excluded.duration_ms, error = null,
        recorded_at = excluded.recorded_at;

    update stats_pipeline.outbox as o set run_id = successor.run_id
    where o.run_id = predecessor.run_id;
end;
$$;

revoke all on function stats_pipeline.carry_over(uuid) from public, anon, authenticated;

create or replace function stats_pipeline.claim_run(
    dagster_run_id text,
    leased_run uuid,
    run_functions text[],
    run_tenant uuid,
    payload jsonb
) returns setof stats_pipeline.run
language plpgsql set search_path = '' as $$
declare
    claimed stats_pipeline.run;
    own_job uuid;
begin
    perform pg_advisory_xact_lock(hashtextextended('stats_pipeline.claim_run:' || dagster_run_id, 0));
    select r.* into claimed from stats_pipeline.run as r where r.run_id = dagster_run_id;
    if found then
        if claimed.outcome in ('expired', 'died') then
            raise exception using errcode = 'SP001', message = format('run %s has been replaced', dagster_run_id);
        end if;
        return next claimed;
        return;
    end if;

    if leased_run is not null then
        update stats_pipeline.run as r
        set run_id = dagster_run_id, claimed_at = now(), seen_at = now(), functions = run_functions
        where r.id = leased_run and r.run_id is null and r.ended_at is null
        returning r.* into claimed;
        if not found then
            raise exception using errcode = 'SP001',
                message = format('lease %s of run %s is void: its jobs were handed out again', leased_run, dagster_run_id);
        end if;
    else
        own_job := gen_random_uuid();
        insert into stats_pipeline.run (tenant_id, job_ids, functions, run_id, lease_until, claimed_at, seen_at)
        values (run_tenant, array[own_job], run_functions, dagster_run_id, now(), now(), now())
        on conflict (tenant_key) where ended_at is null do nothing
        returning * into claimed;
        if not found then
            return;
        end if;
        insert into public.background_job_status (id, job_payload, status, tenant_id)
        values (own_job, payload, 'processing', run_tenant);
    end if;

    update public.background_job_status as j
    set status = 'processing', run_id = dagster_run_id, attempts = coalesce(j.attempts, 0) + 1,
        started_at = coalesce(j.started_at, now())
    where j.id = any(claimed.job_ids) and (j.status = 'queued' or j.id = own_job);

    insert into stats_pipeline.attempt (job_id, attempt, run_id)
    select j.id, j.attempts, dagster_run_id
    from public.background_job_status as j
    where j.run_id = dagster_run_id;

    perform stats_pipeline.carry_over(claimed.id);
    return next claimed;
end;
$$;

revoke all on function stats_pipeline.claim_run(text, uuid, text[], uuid, jsonb) from public, anon, authenticated;

create or replace function stats_pipeline.complete_function(
    dagster_run_id text,
    function_rpc text,
    tags text[],
    tries integer,
    elapsed_ms integer
) returns void
language plpgsql set search_path = '' as $$
begin
    perform from stats_pipeline.run as r
    where r.run_id = dagster_run_id and r.outcome is distinct from 'died'
    for share;
    if not found then
        raise exception using errcode = 'SP001', message = format('run %s has been replaced', dagster_run_id);
    end if;

    insert into stats_pipeline.outbox (run_id, rpc, tag, due_at)
    select dagster_run_id, function_rpc, t.tag, clock_timestamp()
    from unnest(tags) as t (tag);

    perform stats_pipeline.record_function(dagster_run_id, function_rpc, 'success', tries, elapsed_ms, null);
end;
$$;

revoke all on function stats_pipeline.complete_function(text, text, text[], integer, integer)
from public, anon, authenticated;

create or replace function stats_pipeline.count_rows(table_name text, tenant uuid) returns bigint
language plpgsql stable set search_path = '' as $$
declare
    counted constant regclass := to_regclass(format('public.%I', table_name));
    has_tenant constant boolean := exists (
        select from pg_catalog.pg_attribute as a
        where a.attrelid = counted and a.attname = 'tenant_id' and not a.attisdropped
    );
    row_count bigint := 0;
begin
    if counted is not null then
        execute format('select count(*) from %s', counted) || case when has_tenant then ' where tenant_id = $1' else '' end
        into row_count
        using coalesce(tenant, '00000000-0000-0000-0000-000000000001'); -- the default of the stats functions
    end if;
    return row_count;
end;
$$;

revoke all on function stats_pipeline.count_rows(text, uuid) from public, anon, authenticated;

create or replace function stats_pipeline.cut_off_run(dagster_run_id text) returns void
language sql set search_path = '' as $$
select pg_terminate_backend(a.pid)
from pg_catalog.pg_stat_activity as a
where a.application_name like format('stats-pipeline run %s pid %%', left(dagster_run_id, 8))
    and a.datname = current_database() and a.pid <> pg_backend_pid() and pg_has_role(a.usesysid, 'member');
$$;

revoke all on function stats_pipeline.cut_off_run(text) from public, anon, authenticated;

create or replace function stats_pipeline.enqueue_answer(job public.background_job_status, message text) returns jsonb
language sql stable set search_path = '' as $$
select jsonb_build_object('success', true, 'jobId', job.id, 'status', job.status, 'message', message);
$$;

revoke all on function stats_pipeline.enqueue_answer(public.background_job_status, text)
from public, anon, authenticated;

create or replace function public.enqueue_stats_job(payload jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
    problem text := stats_pipeline.payload_problem(payload);
    tenant uuid;
    retried uuid;
    job public.background_job_status;
begin
    if problem is not null then
        raise exception using errcode = 'invalid_parameter_value', message = problem;
    end if;
    tenant := stats_pipeline.to_uuid(payload -> 'tenantId');
    retried := stats_pipeline.to_uuid(payload -> 'retryOf');

    perform pg_advisory_xact_lock(hashtextextended(
        'stats_pipeline.request:' || stats_pipeline.tenant_key(tenant) || ':' || (payload ->> 'requestId'), 0));
    select j.* into job
    from stats_pipeline.job_request as r
    join public.background_job_status as j on j.id = r.job_id
    where r.tenant_key = stats_pipeline.tenant_key(tenant) and r.request_id = payload ->> 'requestId';
    if found then
        return stats_pipeline.enqueue_answer(job, 'This request has been enqueued before');
    end if;

    if retried is not null then
        job := stats_pipeline.open_retry(retried);
        if job.id is not null then
            return stats_pipeline.enqueue_answer(job, 'This job is being retried already');
        end if;
    end if;

    insert into public.background_job_status (job_payload, status)
    values (jsonb_build_object('timestamp', now()) || jsonb_strip_nulls(payload), 'queued')
    returning * into job;
    return stats_pipeline.enqueue_answer(job, 'Stats job enqueued');
end;
$$;

revoke all on function public.enqueue_stats_job(jsonb) from public, anon, authenticated;
grant execute on function public.enqueue_stats_job(jsonb) to service_role;

create or replace function stats_pipeline.ensure_messages(job_ids uuid[]) returns void
language plpgsql set search_path = '' as $$
begin
    perform from public.background_job_status as j where j.id = any(job_ids) order by j.id for update;

    perform pgmq.set_vt('stats_update'::text, q.msg_id, 2 * greatest(coalesce(j.attempts, 0) - 1, 0))
    from public.background_job_status as j
    join pgmq.q_stats_update as q on q.msg_id = j.msg_id
    where j.id = any(job_ids) and j.status = 'queued';

    update public.background_job_status as j
    set msg_id = (select s.id from pgmq.send('stats_update'::text, jsonb_build_object('jobId', j.id), 0) as s (id))
    where j.id = any(job_ids) and j.status = 'queued'
        and not exists (select from pgmq.q_stats_update as q where q.msg_id = j.msg_id);

    perform pg_notify('stats_pipeline_work', '');
end;
$$;

revoke all on function stats_pipeline.ensure_messages(uuid[]) from public, anon, authenticated;

create or replace function stats_pipeline.expire_leases() returns void
language sql set search_path = '' as $$
update stats_pipeline.run set ended_at = now(), outcome = 'expired'
where ended_at is null and run_id is null and lease_until <= now();
$$;

revoke all on function stats_pipeline.expire_leases() from public, anon, authenticated;

create or replace function stats_pipeline.fail_function(dagster_run_id text, function_rpc text, problem text)
returns void
language sql set search_path = '' as $$
insert into stats_pipeline.function_result as f (run_id, rpc, status, attempts, duration_ms, error)
select dagster_run_id, function_rpc, 'failed', 1, 0, problem
where exists (
    select from stats_pipeline.run as r
    where r.run_id = dagster_run_id and function_rpc = any(r.functions)
)
on conflict (run_id, rpc) do update
set status = 'failed', error = excluded.error, recorded_at = now()
where f.status = 'retrying';
$$;

revoke all on function stats_pipeline.fail_function(text, text, text) from public, anon, authenticated;

create or replace function stats_pipeline.heartbeat(dagster_run_id text, lease_seconds integer) returns boolean
language plpgsql set search_path = '' as $$
declare
    is_open boolean;
begin
    update stats_pipeline.run as r set seen_at = clock_timestamp()
    where r.run_id = dagster_run_id and r.ended_at is null;
    is_open := found;

    perform pgmq.set_vt('stats_update'::text, q.msg_id, lease_seconds)
    from pgmq.q_stats_update as q
    join public.background_job_status as j on j.msg_id = q.msg_id
    where is_open and j.run_id = dagster_run_id and j.status = 'processing'
        and q.vt < clock_timestamp() + make_interval(secs => lease_seconds / 2.0);
    return is_open;
end;
$$;

revoke all on function stats_pipeline.heartbeat(text, integer) from public, anon, authenticated;

create or replace function stats_pipeline.job_changed() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
    perform pg_notify('stats_pipeline_jobs', json_build_object(
        'id', new.id, 'status', new.status, 'version', stats_pipeline.job_version(new))::text);
    return null;
end;
$$;

revoke all on function stats_pipeline.job_changed() from public, anon, authenticated;

create or replace trigger stats_pipeline_job_created
after insert on public.background_job_status
for each row when (new.job_type = 'stats_update')
execute function stats_pipeline.job_changed();

create or replace trigger stats_pipeline_job_changed
after update on public.background_job_status
for each row when (
    new.job_type = 'stats_update'
    and (old.status is distinct from new.status or old.results is distinct from new.results)
)
execute function stats_pipeline.job_changed();

create or replace function stats_pipeline.job_inserted() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
    known_request stats_pipeline.job_request;
begin
    new.tenant_id := coalesce(new.tenant_id, stats_pipeline.to_uuid(new.job_payload -> 'tenantId'));
    new.retry_of := coalesce(new.retry_of, stats_pipeline.to_uuid(new.job_payload -> 'retryOf'));

    if jsonb_typeof(new.job_payload -> 'requestId') = 'string' then
        insert into stats_pipeline.job_request (tenant_key, request_id, job_id)
        values (stats_pipeline.tenant_key(new.tenant_id), new.job_payload ->> 'requestId', new.id)
        on conflict do nothing;

        select r.* into strict known_request
        from stats_pipeline.job_request as r
        where r.tenant_key = stats_pipeline.tenant_key(new.tenant_id)
            and r.request_id = new.job_payload ->> 'requestId';
        if known_request.job_id <> new.id then
            raise unique_violation using message = format(
                'requestId %L is job %s already; nothing was enqueued', known_request.request_id, known_request.job_id);
        end if;
    end if;

    if new.msg_id is null then
        new.msg_id := pgmq.send('stats_update'::text, jsonb_build_object('jobId', new.id), 0);
    end if;
    perform pg_notify('stats_pipeline_work', ''); -- pgmq itself does not notify before 1.7
    return new;
end;
$$;

revoke all on function stats_pipeline.job_inserted() from public, anon, authenticated;

create or replace trigger zz_stats_pipeline_job_inserted
before insert on public.background_job_status
for each row when (new.status = 'queued' and new.job_type = 'stats_update')
execute function stats_pipeline.job_inserted();

create or replace function stats_pipeline.job_version(job public.background_job_status) returns bigint
language sql stable set search_path = '' as $$
select (extract(epoch from coalesce(job.updated_at, job.created_at, 'epoch')) * 1000000)::bigint;
$$;

revoke all on function stats_pipeline.job_version(public.background_job_status) from public, anon, authenticated;

create or replace function stats_pipeline.last_sensor_tick() returns timestamptz
language plpgsql stable set search_path = '' as $$
declare
    last_tick timestamptz;
begin
    if to_regclass('dagster.job_ticks') is not null then
        select t."timestamp" at time zone 'UTC' into last_tick
        from dagster.job_ticks as t
        where t.type = 'SENSOR'
        order by t.id desc
        limit 1;
    end if;
    return last_tick;
end;
$$;

revoke all on function stats_pipeline.last_sensor_tick() from public, anon, authenticated;

create or replace function stats_pipeline.lease_jobs(lease_seconds integer, max_runs integer)
returns table (lease_id uuid, tenant_id uuid, jobs integer)
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
    perform pg_advisory_xact_lock(hashtextextended('stats_pipeline.lease_jobs', 0));

    perform stats_pipeline.expire_leases();
    perform stats_pipeline.admit_messages();

    return query
    with waiting as (
        select j.tenant_id, array_agg(j.id order by m.msg_id) as job_ids, min(m.msg_id) as first_msg_id
        from stats_pipeline.visible_messages() as m
        join public.background_job_status as j on j.id = m.job_id and j.status = 'queued'
        where not exists (
            select from stats_pipeline.run as r
            where r.tenant_key = stats_pipeline.tenant_key(j.tenant_id) and r.ended_at is null
        )
        group by j.tenant_id
        order by first_msg_id
        limit greatest(0, max_runs - (select count(*) from stats_pipeline.run as r where r.ended_at is null))
    ),

    leased as (
        insert into stats_pipeline.run (tenant_id, job_ids, lease_until)
        select w.tenant_id, w.job_ids, now() + make_interval(secs => lease_seconds)
        from waiting as w
        returning id, tenant_id, job_ids
    )

    select l.id, l.tenant_id, cardinality(l.job_ids)
    from leased as l
    join waiting as w on w.tenant_id is not distinct from l.tenant_id
    order by w.first_msg_id;

    perform pgmq.set_vt('stats_update'::text, j.msg_id, lease_seconds)
    from stats_pipeline.run as r
    join public.background_job_status as j on j.id = any(r.job_ids)
    where r.ended_at is null and r.run_id is null and r.leased_at = now();
end;
$$;

revoke all on function stats_pipeline.lease_jobs(integer, integer) from public, anon, authenticated;

create or replace function stats_pipeline.open_retry(failed_job_id uuid) returns public.background_job_status
language plpgsql set search_path = '' as $$
declare
    failed_status text;
    retry public.background_job_status;
begin
    select j.status into failed_status
    from public.background_job_status as j
    where j.id = failed_job_id
    for update;
    if failed_status is distinct from 'failed' then
        raise exception using
            errcode = 'invalid_parameter_value',
            message = format('retryOf must be the id of a failed job; job %s %s', failed_job_id,
                case when failed_status is null then 'does not exist' else 'is ' || failed_status end);
    end if;
    select j.* into retry
    from public.background_job_status as j
    where j.retry_of = failed_job_id and j.status in ('queued', 'processing')
    order by j.created_at
    limit 1;
    return retry;
end;
$$;

revoke all on function stats_pipeline.open_retry(uuid) from public, anon, authenticated;

create or replace function stats_pipeline.pause_run(dagster_run_id text, seconds integer) returns void
language sql set search_path = '' as $$
update stats_pipeline.run set seen_at = clock_timestamp() + make_interval(secs => seconds)
where run_id = dagster_run_id and ended_at is null;
$$;

revoke all on function stats_pipeline.pause_run(text, integer) from public, anon, authenticated;

create or replace function stats_pipeline.payload_problem(payload jsonb) returns text
language sql immutable set search_path = '' as $$
select case
    when payload is null or jsonb_typeof(payload) <> 'object' then 'payload must be a JSON object'
    when octet_length(payload::text) > 65536 then
        format('payload is %s bytes long; at most 65536 are allowed', octet_length(payload::text))
    when jsonb_typeof(payload -> 'triggeredBy') is distinct from 'string'
        or payload ->> 'triggeredBy' not in ('post-match', 'admin', 'cron') then
        'triggeredBy must be one of post-match, admin, cron'
    when jsonb_typeof(payload -> 'requestId') is distinct from 'string'
        or length(payload ->> 'requestId') not between 1 and 200 then
        'requestId must be a text of 1 to 200 characters'
    when jsonb_typeof(payload -> 'timestamp') not in ('string', 'null')
        or payload ->> 'timestamp' !~ '^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?$' then
        'timestamp must be an ISO 8601 date and time'
    when jsonb_typeof(payload -> 'matchId') not in ('number', 'null')
        or (jsonb_typeof(payload -> 'matchId') = 'number' and payload ->> 'matchId' !~ '^[1-9]\d{0,17}$') then
        'matchId must be a positive integer'
    when jsonb_typeof(payload -> 'userId') not in ('string', 'null') then 'userId must be a text'
    when stats_pipeline.uuid_problem(payload -> 'tenantId') then 'tenantId must be a UUID'
    when stats_pipeline.uuid_problem(payload -> 'retryOf') then 'retryOf must be a UUID'
end;
$$;

revoke all on function stats_pipeline.payload_problem(jsonb) from public, anon, authenticated;

create or replace function stats_pipeline.prune_jobs(days integer, batch integer) returns integer
language plpgsql set search_path = '' as $$
declare
    pruned uuid[];
begin
    pruned := array(
        select j.id
        from public.background_job_status as j
        where j.job_type = 'stats_update' and j.status in ('completed', 'failed')
            and coalesce(j.completed_at, j.updated_at) < now() - make_interval(days => days)
        order by j.created_at
        limit batch
        for update skip locked
    );
    delete from public.background_job_status as j where j.id = any(pruned);
    return cardinality(pruned);
end;
$$;

revoke all on function stats_pipeline.prune_jobs(integer, integer) from public, anon, authenticated;

create or replace function stats_pipeline.prune_messages(days integer, batch integer) returns integer
language plpgsql set search_path = '' as $$
declare
    pruned integer;
begin
    delete from pgmq.a_stats_update as a
    where a.msg_id in (
        select old.msg_id
        from pgmq.a_stats_update as old
        where old.archived_at < now() - make_interval(days => days)
        order by old.archived_at
        limit batch
    );
    get diagnostics pruned = row_count;
    return pruned;
end;
$$;

revoke all on function stats_pipeline.prune_messages(integer, integer) from public, anon, authenticated;

create or replace function stats_pipeline.prune_runs(days integer, batch integer) returns integer
language plpgsql set search_path = '' as $$
declare
    pruned uuid[];
begin
    pruned := array(
        select r.id
        from stats_pipeline.run as r
        where r.ended_at < now() - make_interval(days => days)
            and not exists (select from public.background_job_status as j where j.run_id = r.run_id)
        order by r.ended_at
        limit batch
    );
    delete from stats_pipeline.function_result as f
    using stats_pipeline.run as r
    where r.id = any(pruned) and f.run_id = r.run_id;
    delete from stats_pipeline.run as r where r.id = any(pruned);
    return cardinality(pruned);
end;
$$;

revoke all on function stats_pipeline.prune_runs(integer, integer) from public, anon, authenticated;

create or replace function stats_pipeline.prune_tags(days integer, batch integer) returns integer
language plpgsql set search_path = '' as $$
declare
    pruned integer;
begin
    delete from stats_pipeline.outbox as o
    where o.id in (
        select old.id
        from stats_pipeline.outbox as old
        where old.due_at < now() - make_interval(days => days)
            and (
                old.delivered_at is not null
                or exists (select from stats_pipeline.outbox as y where y.tag = old.tag and y.id > old.id)
            )
        order by old.id
        limit batch
    );
    get diagnostics pruned = row_count;
    return pruned;
end;
$$;

revoke all on function stats_pipeline.prune_tags(integer, integer) from public, anon, authenticated;

create or replace function stats_pipeline.record_delivery(
    route text,
    asked bigint[],
    taken text[],
    problem text,
    deadline_seconds integer
) returns void
language plpgsql set search_path = '' as $$
begin
    update stats_pipeline.outbox as o set delivered_at = clock_timestamp(), tries = o.tries + 1
    where o.id = any(asked) and o.delivered_at is null and o.tag = any(taken);

    update stats_pipeline.outbox as o
    set tries = o.tries + 1, next_try_at = clock_timestamp() + stats_pipeline.backoff(o.tries)
    where o.id = any(asked) and o.delivered_at is null and problem is null;

    if problem is null then
        delete from stats_pipeline.endpoint as e where e.url = route;
    else
        insert into stats_pipeline.endpoint as e (url, failures, next_try_at, last_error)
        values (route, 1, clock_timestamp() + stats_pipeline.backoff(0), problem)
        on conflict (url) do update
        set failures = e.failures + 1, last_error = excluded.last_error,
            next_try_at = clock_timestamp() + stats_pipeline.backoff(e.failures)
        where e.next_try_at <= clock_timestamp();
    end if;

    perform stats_pipeline.settle_run(r.run_id, true, deadline_seconds)
    from (select distinct o.run_id from stats_pipeline.outbox as o where o.id = any(asked)) as r;
end;
$$;

revoke all on function stats_pipeline.record_delivery(text, bigint[], text[], text, integer)
from public, anon, authenticated;

create or replace function stats_pipeline.record_function(
    dagster_run_id text,
    function_rpc text,
    new_status text,
    tries integer,
    elapsed_ms integer,
    problem text
) returns void
language sql set search_path = '' as $$
insert into stats_pipeline.function_result as f (run_id, rpc, status, attempts, duration_ms, error)
values (dagster_run_id, function_rpc, new_status, tries, elapsed_ms, problem)
on conflict (run_id, rpc) do update
set status = excluded.status, attempts = excluded.attempts, duration_ms = excluded.duration_ms,
    error = excluded.error, recorded_at = now()
where f.status <> 'success';
$$;

revoke all on function stats_pipeline.record_function(text, text, text, integer, integer, text)
from public, anon, authenticated;

create or replace function stats_pipeline.requeue_jobs(job_ids uuid[], max_attempts integer, reason text) returns void
language plpgsql set search_path = '' as $$
declare
    orphans uuid[];
begin
    perform from public.background_job_status as j where j.id = any(job_ids) order by j.id for update;
    orphans := array(
        select j.id
        from public.background_job_status as j
        where j.id = any(job_ids) and j.status = 'processing'
            and not exists (
                select from stats_pipeline.run as r
                where r.run_id = j.run_id and r.outcome is distinct from 'died'
            )
    );

    update stats_pipeline.attempt as a set ended_at = clock_timestamp(), outcome = 'died', error = reason
    where a.job_id = any(orphans) and a.ended_at is null;

    update public.background_job_status as j
    set status = 'failed', completed_at = clock_timestamp(),
        error_message = reason || case
            when max_attempts > 0 then format(' (attempt %s of %s)', j.attempts, max_attempts) else ''
        end
    where j.id = any(orphans) and coalesce(j.attempts, 0) >= max_attempts;

    perform pgmq.archive('stats_update'::text, array_agg(j.msg_id))
    from public.background_job_status as j
    where j.id = any(orphans) and j.status = 'failed' and j.msg_id is not null
    having count(*) > 0;

    update public.background_job_status as j
    set status = 'queued', run_id = null, results = null
    where j.id = any(orphans) and j.status = 'processing';

    perform stats_pipeline.ensure_messages(orphans);
end;
$$;

revoke all on function stats_pipeline.requeue_jobs(uuid[], integer, text) from public, anon, authenticated;

create or replace function public.retry_stats_job(job_id uuid) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
    payload jsonb;
begin
    select j.job_payload into payload from public.background_job_status as j where j.id = job_id;
    return public.enqueue_stats_job(
        coalesce(payload, '{}') - 'timestamp'
        || jsonb_build_object('triggeredBy', 'admin', 'requestId', gen_random_uuid(), 'retryOf', job_id));
end;
$$;

revoke all on function public.retry_stats_job(uuid) from public, anon, authenticated;
grant execute on function public.retry_stats_job(uuid) to service_role;

create or replace function stats_pipeline.run_results(dagster_run_id text, cache_configured boolean) returns jsonb
language sql stable set search_path = '' as $$
select jsonb_build_object(
    'run_id', r.run_id,
    'total_functions', cardinality(r.functions),
    'successful_functions', coalesce(f.successful, 0),
    'failed_functions', coalesce(f.failed, 0),
    'functions', coalesce(f.functions, '{}'),
    'cache', jsonb_build_object(
        'status', case when not cache_configured then 'not configured' when o.pending is null then 'delivered'
            else 'pending' end,
        'delivered', coalesce(o.delivered, '[]'),
        'pending', coalesce(o.pending, '[]')
    )
)
from stats_pipeline.run as r
cross join lateral (
    select
        count(*) filter (where fr.status = 'success') as successful,
        count(*) filter (where fr.status = 'failed') as failed,
        jsonb_object_agg(fr.rpc, jsonb_strip_nulls(jsonb_build_object(
            'status', fr.status, 'duration_ms', fr.duration_ms, 'attempts', fr.attempts, 'error', fr.error))
        ) as functions
    from stats_pipeline.function_result as fr
    where fr.run_id = r.run_id
) as f
cross join lateral (
    select
        jsonb_agg(due.tag order by due.tag) filter (where due.is_delivered) as delivered,
        jsonb_agg(due.tag order by due.tag) filter (where not due.is_delivered) as pending
    from (
        select ob.tag, bool_and(ob.delivered_at is not null) as is_delivered
        from stats_pipeline.outbox as ob
        where ob.run_id = r.run_id
        group by ob.tag
    ) as due
) as o
where r.run_id = dagster_run_id;
$$;

revoke all on function stats_pipeline.run_results(text, boolean) from public, anon, authenticated;

create or replace function stats_pipeline.settle_run(
    dagster_run_id text,
    cache_configured boolean,
    deadline_seconds integer
) returns void
language plpgsql set search_path = '' as $$
declare
    settled stats_pipeline.run;
    outcome_of_run jsonb;
    failed_rpcs text;
    tags_due boolean;
    is_late boolean;
begin
    select r.* into settled from stats_pipeline.run as r where r.run_id = dagster_run_id for update;
    if not found or settled.outcome = 'died' then
        return;
    end if;
    outcome_of_run := stats_pipeline.run_results(dagster_run_id, cache_configured);

    if settled.ended_at is null
        and (outcome_of_run ->> 'successful_functions')::integer + (outcome_of_run ->> 'failed_functions')::integer
        >= (outcome_of_run ->> 'total_functions')::integer
    then
        update stats_pipeline.run as r
        set ended_at = clock_timestamp(),
            outcome = case when (outcome_of_run ->> 'failed_functions')::integer = 0 then 'succeeded' else 'failed' end
        where r.id = settled.id
        returning r.* into settled;
        perform pg_notify('stats_pipeline_work', ''); -- the tenant's waiting jobs can be leased now
    end if;

    tags_due := cache_configured and jsonb_array_length(outcome_of_run #> '{cache,pending}') > 0;
    is_late := settled.ended_at < clock_timestamp() - make_interval(secs => deadline_seconds);

    update public.background_job_status as j
    set results = n.results
    from public.background_job_status as o
    cross join lateral (
        select outcome_of_run || jsonb_build_object(
            'attempt', o.attempts,
            'coalesced_with', to_jsonb(array_remove(settled.job_ids, o.id))) as results
    ) as n
    where j.run_id = dagster_run_id and o.id = j.id and o.results is distinct from n.results;

    if settled.ended_at is null or (tags_due and not is_late) then
        return;
    end if;

    select string_agg(f.rpc, ', ' order by f.rpc) into failed_rpcs
    from stats_pipeline.function_result as f
    where f.run_id = dagster_run_id and f.status = 'failed';

    update public.background_job_status as j
    set status = case when settled.outcome = 'succeeded' and not tags_due then 'completed' else 'failed' end,
        completed_at = clock_timestamp(),
        error_message = nullif(concat_ws('; ',
            'Failed functions: ' || failed_rpcs,
            case when tags_due then 'Cache tags not delivered: '
                || (select string_agg(t.tag, ', ') from jsonb_array_elements_text(outcome_of_run #> '{cache,pending}') as t (tag))
            end), '')
    where j.run_id = dagster_run_id
        and (j.status = 'processing' or (j.status = 'failed' and settled.outcome = 'succeeded' and not tags_due));

    update stats_pipeline.attempt as a
    set ended_at = clock_timestamp(), outcome = j.status, error = j.error_message
    from public.background_job_status as j
    where a.run_id = dagster_run_id and j.id = a.job_id and j.run_id = dagster_run_id
        and a.outcome is distinct from j.status;

    perform pgmq.archive('stats_update'::text, array_agg(j.msg_id))
    from public.background_job_status as j
    where j.run_id = dagster_run_id and j.msg_id is not null
    having count(*) > 0;
end;
$$;

revoke all on function stats_pipeline.settle_run(text, boolean, integer) from public, anon, authenticated;

create or replace function stats_pipeline.tenant_key(tenant_id uuid) returns text
language sql immutable set search_path = '' as $$
select coalesce(tenant_id::text, 'default');
$$;

revoke all on function stats_pipeline.tenant_key(uuid) from public, anon, authenticated;

create or replace function stats_pipeline.to_uuid(field jsonb) returns uuid
language sql immutable set search_path = '' as $$
select case
    when field #>> '{}' ~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' then
        (field #>> '{}')::uuid
end;
$$;

revoke all on function stats_pipeline.to_uuid(jsonb) from public, anon, authenticated;

create or replace function stats_pipeline.uuid_problem(field jsonb) returns boolean
language sql immutable set search_path = '' as $$
select coalesce(jsonb_typeof(field), 'null') <> 'null' and stats_pipeline.to_uuid(field) is null;
$$;

revoke all on function stats_pipeline.uuid_problem(jsonb) from public, anon, authenticated;

create or replace function stats_pipeline.visible_messages()
returns table (msg_id bigint, enqueued_at timestamptz, message jsonb, names_job boolean, job_id uuid)
language sql stable set search_path = '' as $$
select q.msg_id, q.enqueued_at, q.message, jsonb_typeof(q.message) = 'object' and q.message ? 'jobId', j.id
from pgmq.q_stats_update as q
left join public.background_job_status as j on j.msg_id = q.msg_id
where q.vt <= clock_timestamp();
$$;

revoke all on function stats_pipeline.visible_messages() from public, anon, authenticated;

create or replace function stats_pipeline.void_lease(lease_id uuid, problem text) returns void
language plpgsql set search_path = '' as $$
declare
    void_jobs uuid[];
begin
    update stats_pipeline.run as r set ended_at = clock_timestamp(), outcome = 'expired'
    where r.id = lease_id and r.run_id is null and r.ended_at is null
    returning r.job_ids into void_jobs;

    update public.background_job_status as j
    set status = 'failed', completed_at = clock_timestamp(), error_message = problem
    where j.id = any(void_jobs) and j.status = 'queued' and problem is not null;

    perform pgmq.archive('stats_update'::text, array_agg(j.msg_id))
    from public.background_job_status as j
    where j.id = any(void_jobs) and j.status = 'failed'
    having count(*) > 0;

    perform pgmq.set_vt('stats_update'::text, j.msg_id, extract(epoch from stats_pipeline.backoff(v.earlier))::integer)
    from public.background_job_status as j
    cross join lateral (
        select count(*)::integer - 1 as earlier
        from stats_pipeline.run as r
        where r.outcome = 'expired' and j.id = any(r.job_ids)
    ) as v
    where j.id = any(void_jobs) and j.status = 'queued';
end;
$$;

revoke all on function stats_pipeline.void_lease(uuid, text) from public, anon, authenticated;

insert into stats_pipeline.migration (kind, name, checksum) values
    ('migrations', '0001_roles.sql', 'fcd7779cff3906187ffb4d31c9a9a8f1daf47fccbd0547c13d7d2f70d5236713'),
    ('migrations', '0002_background_job_status.sql', 'c6bd6f5e16c2f451f6d3b983e1441e62adcd879086af893ce96c3d847c0d7376'),
    ('migrations', '0003_queue.sql', 'c5b4353a56422af270a42b474e398b86a03880b8aa093fd211df55063b380e71'),
    ('migrations', '0004_runs.sql', 'ad45477e41a896190abd8a21561dc11dddbca09f63cb7aa123afb485a23f7d3b'),
    ('migrations', '0005_repair.sql', '1e828a384026cf6aaad14d60beb6d54c10e6584a6c76bc8a45f831a6ffd79844'),
    ('migrations', '0006_attempts_of_a_job.sql', '2083030770b4d932157cce955f9710ac172a333c0e9d51294dcec19025c7d262'),
    ('functions', 'abandon_run.sql', '7cd395f9907da9e9aea164a8b33b4a536eac2394cff179f9bb3ffae8f81daca8'),
    ('functions', 'admit_messages.sql', '9caf824e472d4b812ee3ecde923a4da941e0f79223cf517165514175b8fffd63'),
    ('functions', 'archive_stale_messages.sql', '8ff1d24d0c062501e291623c76f3d59eef03106aa17b05fd79de003e05269be4'),
    ('functions', 'backoff.sql', '2959fe94857a93c82b51fcf97177ed2a75774014abd3a1a129088ac81bfeda53'),
    ('functions', 'carry_over.sql', '803b20b7f6cf53333447b24bd3ef0214454c74263729a8480218a118e374726f'),
    ('functions', 'claim_run.sql', '4bb4b824938307d22a0ebd04d8bda2c4c6dd084389817dc350af0b6ea68b2f6f'),
    ('functions', 'complete_function.sql', 'ccaac9ca12ba6a7e23da738bfa4d611a548a1140941045e3f413f83cb09ef96f'),
    ('functions', 'count_rows.sql', '8bc7f1bc8e1544bad1dfb77decf690ce2993d50ebc9a402620f680dd159dbdce'),
    ('functions', 'cut_off_run.sql', 'c288b4cc5e6e28b4eae7e88080d77ddeab06999e7fa366fabe2d5f4f2dfe9327'),
    ('functions', 'enqueue_answer.sql', 'bf557c28468929f5d13978706648c4efa0d678f85484fd5815c9d6410d29b7d6'),
    ('functions', 'enqueue_stats_job.sql', 'c596c62dab5d0a71811d827faa41a55616839e7353916abccb975ed2c4c5972b'),
    ('functions', 'ensure_messages.sql', 'ef25ed55b04f2fd65153a40db8e3a56de11e7d6c2094658ed1d92f2364a0455a'),
    ('functions', 'expire_leases.sql', 'ec6c5ef1f465c94a71191cfa1b03f8ffd85c7489633780fee8944ff6cff95cbc'),
    ('functions', 'fail_function.sql', '450c62ddf74b0db490ee83946059d615c688daaec0b0b37c41b146b9f8a5ca28'),
    ('functions', 'heartbeat.sql', '68199bb4f953a6efd6a0a852c9862ea512ccb0c20eb08309c7a7a80ab0894bf9'),
    ('functions', 'job_changed.sql', '581fc76b616ca2fbb36128a0980acf5ebeb6aff0d7dc9c4a6c41e31a515b28ad'),
    ('functions', 'job_inserted.sql', '22021ea2bd318cd394ad4f62f6a126678233535a0cadc1a3664b9246a14aa371'),
    ('functions', 'job_version.sql', '7f7e65f572dc85244758ffd094aea995debac2c5ce99a6a150ce199b41f90a4d'),
    ('functions', 'last_sensor_tick.sql', '7bd5af384dc3a7b31754dccea3aaf27845c3210cbae6345a1a30114e7370148a'),
    ('functions', 'lease_jobs.sql', 'cb62fbcd8b5d70eaab9615f5444f94cfc71155868b96d3fb5c2284c52eb71683'),
    ('functions', 'open_retry.sql', 'ce513e862f02c3b880cf1451aa27c6340040ad560331a890e2bf2e718823d5f4'),
    ('functions', 'pause_run.sql', 'f351bf3eda493efca45b82d088739ec90920106d2b8c8f3732632ced00e4d020'),
    ('functions', 'payload_problem.sql', 'd8ff95fc8de6859437df17f21aa7ea2d865ee31acf4e7cf0bdc356725a0bad5e'),
    ('functions', 'prune_jobs.sql', '74f3a55efd10245fc5f878fd876e312096ad45d13b215103ae519a12c36c43e4'),
    ('functions', 'prune_messages.sql', '2e66aff3f033391439612a84b63fc707f0862d48def2a0a26db74f43410362ee'),
    ('functions', 'prune_runs.sql', '7b78ab301c6ba69afe1b5014c44cb30744acc29d201db7a105d5c79897978a5e'),
    ('functions', 'prune_tags.sql', '37cfeb9a3f471c3be9f0fed612768f26618600226bd65f015ceadbfe7d43fcd1'),
    ('functions', 'record_delivery.sql', '46644716918cb7954c4435973a1ed9267f37c0f8c9760620f29af900e121892c'),
    ('functions', 'record_function.sql', 'a89cf90f4e5434b19424543a44c72132d55cffdd2e55fbf606d630b859c18d68'),
    ('functions', 'requeue_jobs.sql', '90d5b4553963ec42f33cccecfb4282cd6723e79714ec85478c9c9d1ca28da067'),
    ('functions', 'retry_stats_job.sql', 'd65f1259e5bcd24e81b0ca7559b5fa8ed6415adfd3f83eee3d246eee7d253598'),
    ('functions', 'run_results.sql', '6d6fbbe7d80eaefc08862e1a3343902b276b60c78adfac0f020745170678048a'),
    ('functions', 'settle_run.sql', '97e8db5f76f64a3b7a8dc43e56ab7401ec439d28d6208301ec8af6013fa050b6'),
    ('functions', 'tenant_key.sql', 'deae40ec35f34bc5c1ab1c603ac2b1116fb65dcd5988649fe6ddb5409db6ca4e'),
    ('functions', 'to_uuid.sql', '7a70758b6cd4c75bad7778c46106974dfa5eb308d5fde1ea2a191f9dbb88cd04'),
    ('functions', 'uuid_problem.sql', 'ae575663ef5db1e76b4723a81b455d77a97189fc36a344b8b09e1f96e17eb7e4'),
    ('functions', 'visible_messages.sql', '32907f28a392c6b393463b4fbb0ee16860dfdf4e7c8c44452c861b9e3ca951c4'),
    ('functions', 'void_lease.sql', 'baae9c7ebc4d1eb06fc7078ebdbebdf7dc0d5ab3a1384ce07605b15ba87dc68e');
commit;

-- One club's job that is over, with a tag that was taken and one that the app has left; one that has failed; one that a
-- run works on; one whose run has died; one that is leased; two that wait, one of them as a raw message.
do $$
declare
    club uuid;
    leased record;
    rpcs text[] := array['update_aggregated_all_time_stats', 'update_aggregated_hall_of_fame'];
begin
    for club in select ('00000000-0000-4000-8000-00000000000' || n)::uuid from generate_series(1, 5) as n loop
        perform public.enqueue_stats_job(jsonb_build_object(
            'triggeredBy', 'admin', 'requestId', 'of ' || right(club::text, 1), 'tenantId', club));
    end loop;
    for leased in select l.* from stats_pipeline.lease_jobs(30, 10) as l loop
        continue when right(leased.tenant_id::text, 1) = '5';
        perform stats_pipeline.claim_run(
            'run ' || right(leased.tenant_id::text, 1), leased.lease_id, rpcs, leased.tenant_id, '{}');
    end loop;

    perform stats_pipeline.complete_function('run 1', rpcs[1], array['all_time_stats'], 2, 120);
    perform stats_pipeline.complete_function('run 1', rpcs[2], array['hall_of_fame'], 1, 80);
    perform stats_pipeline.settle_run('run 1', false, 900);
    perform stats_pipeline.record_delivery('http://app', array[1, 2]::bigint[], array['all_time_stats'], 'down', 900);
    perform stats_pipeline.complete_function('run 2', rpcs[1], array['all_time_stats'], 1, 90);
    perform stats_pipeline.fail_function('run 2', rpcs[2], 'division by zero');
    perform stats_pipeline.settle_run('run 2', false, 900);
    perform stats_pipeline.complete_function('run 3', rpcs[1], array['all_time_stats'], 1, 70);
    perform stats_pipeline.record_function('run 3', rpcs[2], 'retrying', 1, 5, 'deadlock detected');
    perform stats_pipeline.settle_run('run 3', false, 900);
    perform stats_pipeline.complete_function('run 4', rpcs[1], array['all_time_stats'], 1, 60);
    perform stats_pipeline.abandon_run('run 4', clock_timestamp(), 3, 'It stopped answering');

    perform public.enqueue_stats_job('{"triggeredBy": "cron", "requestId": "nightly"}');
    perform pgmq.send('stats_update', '{"triggeredBy": "admin", "requestId": "raw"}'::jsonb);
    update stats_pipeline.run set seen_at = seen_at - interval '1 minute'; -- nobody is at work any more
end;
$$;
