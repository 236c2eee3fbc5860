-- A message belongs to the job that it names and that names it: ids alone may start again, in a queue made anew.
drop index if exists public.idx_background_job_status_msg_id;
create index idx_background_job_status_msg_id
    on public.background_job_status (msg_id) where msg_id is not null;

-- Waiting jobs by the club as they name it, so that a look for work reads one of each club's and not all of them.
create index idx_background_job_status_waiting
    on public.background_job_status ((left(coalesce(tenant_id::text, job_payload ->> 'tenantId', ''), 100)), msg_id)
    where status = 'queued' and job_type = 'stats_update';

-- A request may be known whose row was never stored, because a constraint of the app's came first: it is free then.
alter table stats_pipeline.job_request
    drop constraint job_request_job_id_fkey,
    drop constraint job_request_job_id_key;
create index job_request_job_id on stats_pipeline.job_request (job_id);

drop function if exists stats_pipeline.visible_messages();
