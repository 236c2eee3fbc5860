-- The jobs whose id begins like this; two are enough to show that it is ambiguous.
select j.id
from public.background_job_status as j
where starts_with(j.id::text, %(beginning)s) and j.job_type = 'stats_update'
limit 2;
