-- One row per job, read by the app's admin page. The app may have created it already, with columns of its own.
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
-- From a message to its job, and from a run to its jobs.
create unique index if not exists idx_background_job_status_msg_id
    on public.background_job_status (msg_id) where msg_id is not null;
create index if not exists idx_background_job_status_run_id
    on public.background_job_status (run_id) where run_id is not null;
-- A second press of Retry finds the first one's job.
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
