-- What /metrics counts. An event is only ever inserted, so that no club waits for another's; now and then events are
-- added up to counters, which pruning does not touch.
create table stats_pipeline.measurement (
    id bigint generated always as identity primary key,
    metric text not null,
    label text not null default '',
    detail text not null default '',
    value double precision not null
);
create table stats_pipeline.counter (
    metric text not null,
    label text not null,
    detail text not null,
    le double precision not null, -- the upper bound of the bucket, seconds; infinity for what has no buckets
    observations bigint not null,
    total double precision not null,
    primary key (metric, label, detail, le)
);
alter table stats_pipeline.measurement enable row level security;
alter table stats_pipeline.counter enable row level security;

-- What there has been so far.
insert into stats_pipeline.measurement (metric, label, detail, value)
select 'jobs', j.status,
    case when j.job_payload ->> 'triggeredBy' in ('post-match', 'admin', 'cron') then j.job_payload ->> 'triggeredBy'
        else 'other' end,
    1
from public.background_job_status as j
where j.job_type = 'stats_update' and j.status in ('completed', 'failed')
union all
select 'job seconds', j.status, '', greatest(extract(epoch from j.completed_at - j.started_at), 0)
from public.background_job_status as j
where j.job_type = 'stats_update' and j.status in ('completed', 'failed')
    and least(j.started_at, j.completed_at) > '1000-01-01' and greatest(j.started_at, j.completed_at) < '9000-01-01'
union all
select 'job retries', '', '', j.attempts - 1
from public.background_job_status as j
where j.job_type = 'stats_update' and j.attempts > 1
union all
select 'function seconds', f.rpc, '', f.duration_ms / 1000.0
from stats_pipeline.function_result as f
where f.status <> 'retrying'
union all
select 'function retries', f.rpc, '', f.attempts - 1
from stats_pipeline.function_result as f
where f.status <> 'retrying' and f.attempts > 1;
