-- What runs each second or for each job finds its rows by an index, however many jobs there have been.
create index run_last_claimed on stats_pipeline.run (tenant_key, claimed_at) where claimed_at is not null;
create index run_died on stats_pipeline.run (ended_at) where outcome = 'died';
create index run_ended on stats_pipeline.run (ended_at) where ended_at is not null;
create index outbox_tag_due on stats_pipeline.outbox (tag, id);
create index outbox_due_at on stats_pipeline.outbox (due_at);
-- The newest jobs, first those whose created_at somebody has emptied; and the oldest that are over. Neither reads
-- updated_at: an index on what each update changes would make every one of them write to all indexes.
create index idx_background_job_status_newest
    on public.background_job_status ((coalesce(created_at, 'infinity')) desc, id);
create index idx_background_job_status_over
    on public.background_job_status ((coalesce(completed_at, created_at, '-infinity')))
    where job_type = 'stats_update' and status in ('completed', 'failed');
