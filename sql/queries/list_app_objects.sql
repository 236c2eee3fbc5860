-- Which of these tables and functions the database already has.
select c.relname as name
from pg_catalog.pg_class as c
where c.relnamespace = 'public'::regnamespace and c.relname = any(%(tables)s)
union all
select p.proname || '()'
from pg_catalog.pg_proc as p
where p.pronamespace = 'public'::regnamespace and p.proname = any(%(functions)s)
order by 1;
