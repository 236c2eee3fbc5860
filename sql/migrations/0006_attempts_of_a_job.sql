-- The attempts of a job that somebody deletes go with it: nobody would ever end them.
delete from stats_pipeline.attempt as a
where not exists (select from public.background_job_status as j where j.id = a.job_id);

alter table stats_pipeline.attempt
    add constraint attempt_job_id_fkey foreign key (job_id)
    references public.background_job_status (id) on delete cascade;
