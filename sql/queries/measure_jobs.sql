-- Jobs by status and trigger, with their extra attempts. A rejected payload may name any trigger: those count as other.
select
    j.status,
    case when j.job_payload ->> 'triggeredBy' in ('post-match', 'admin', 'cron') then j.job_payload ->> 'triggeredBy'
        else 'other' end as trigger,
    count(*) as jobs,
    coalesce(sum(greatest(j.attempts - 1, 0)), 0) as extra_attempts
from public.background_job_status as j
where j.job_type = 'stats_update'
group by 1, 2;
