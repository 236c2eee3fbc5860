-- For /metrics: a job has ended, and how long it took if its row says so.
create or replace function stats_pipeline.measure_end(job public.background_job_status) returns void
language sql set search_path = pg_catalog, pg_temp as $$
insert into stats_pipeline.measurement (metric, label, detail, value)
select 'jobs', job.status, stats_pipeline.trigger_of(job.job_payload), 1
union all
select 'job seconds', job.status, '', greatest(extract(epoch from job.completed_at - job.started_at), 0)
where isfinite(job.completed_at) and isfinite(job.started_at);
$$;

revoke all on function stats_pipeline.measure_end(public.background_job_status) from public, anon, authenticated;
