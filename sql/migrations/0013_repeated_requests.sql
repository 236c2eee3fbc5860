-- A requestId that is asked for again long after its job was over: somebody's requestId is a constant. Rows are only
-- ever added, so that nobody who asks waits for another; they go with their job.
create table stats_pipeline.repeated_request (
    job_id uuid not null,
    repeated_at timestamptz not null default now()
);
create index repeated_request_job_id on stats_pipeline.repeated_request (job_id, repeated_at);
alter table stats_pipeline.repeated_request enable row level security;

drop function if exists stats_pipeline.enqueue_answer(public.background_job_status, text);
