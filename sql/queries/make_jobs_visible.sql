-- End every pause of waiting jobs, such as the one before the next attempt, so that they can be handed out now.
select stats_pipeline.show_messages(array(
    select j.id
    from public.background_job_status as j
    where j.status = 'queued' and j.job_type = 'stats_update'
        and not exists (select from stats_pipeline.lease as l where j.id = any(l.job_ids) and l.ended_at is null)
), 0);
