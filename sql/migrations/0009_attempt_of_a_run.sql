-- A job may be given new attempts by hand, so their numbers start again: an attempt is one run's turn at one job.
alter table stats_pipeline.attempt
    drop constraint attempt_pkey,
    add primary key (job_id, run_id),
    drop constraint attempt_outcome_check,
    -- 'withdrawn': somebody else has changed the row meanwhile, so that this attempt does not end it.
    add constraint attempt_outcome_check check (outcome in ('completed', 'failed', 'died', 'withdrawn')),
    -- Also a job whose id is changed keeps its attempts.
    drop constraint attempt_job_id_fkey,
    add constraint attempt_job_id_fkey foreign key (job_id)
    references public.background_job_status (id) on delete cascade on update cascade,
    -- The row's xmin when the job was put back into the queue: while the row has it, nobody has touched the job since.
    add column put_back_as text;

create index attempt_open on stats_pipeline.attempt (run_id) where outcome is null;

drop function if exists stats_pipeline.carry_over(uuid);
