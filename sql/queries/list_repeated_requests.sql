-- Jobs that were requested again long after they had ended, in the last eight days, latest first.
select r.request_id, r.tenant_key as club, n.job_id, n.times, n.last_at
from (
    select
        job_id, max(repeated_at) as last_at,
        count(distinct (repeated_at at time zone 'UTC')::date) as times
    from stats_pipeline.repeated_request
    where repeated_at > now() - interval '8 days'
    group by job_id
    order by last_at desc
    limit 5
) as n
join stats_pipeline.job_request as r on r.job_id = n.job_id
order by n.last_at desc;
