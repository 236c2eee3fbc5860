-- How many calls of each stats function took how long, per bucket, and how many tries were more than the first.
select
    f.rpc as label,
    width_bucket(f.duration_ms / 1000.0::float, %(bounds)s::float[]) as bucket,
    count(*) as observations,
    sum(f.duration_ms) / 1000.0::float as seconds,
    sum(f.attempts - 1) as extra_tries
from stats_pipeline.function_result as f
where f.status <> 'retrying'
group by 1, 2;
