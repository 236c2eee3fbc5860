-- Whatever keeps a waiting job from being handed out now, such as the pause before its next attempt, is over.
select stats_pipeline.show_messages(array(
    select j.id
    from public.background_job_status as j
    where j.status = 'queued' and j.job_type = 'stats_update'
        and not exists (select from stats_pipeline.lease as l where j.id = any(l.job_ids) and l.ended_at is null)
), 0);
