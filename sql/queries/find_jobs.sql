-- The jobs whose id begins so; two are as good as many.
select j.id
from public.background_job_status as j
where starts_with(j.id::text, %(beginning)s) and j.job_type = 'stats_update'
limit 2;
