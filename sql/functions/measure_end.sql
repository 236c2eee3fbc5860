-- For /metrics: a job has ended, and how long it took if its row says so.
create or replace function stats_pipeline.measure_end(job public.background_job_status) returns void
language sql set search_path = pg_catalog, pg_temp as $$
insert into stats_pipeline.measurement (metric, label, detail, value)
select 'jobs', job.status, stats_pipeline.trigger_of(job.job_payload), 1
union all
select 'job seconds', job.status, '', greatest(extract(epoch from took.time), 0)
from (select stats_pipeline.readable(job.completed_at) - stats_pipeline.readable(job.started_at) as time) as took
where took.time is not null;
$$;

revoke all on function stats_pipeline.measure_end(public.background_job_status) from public, anon, authenticated;
