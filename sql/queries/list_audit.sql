-- The newest rows of the audit, newest first.
select at, action, outcome, who, role, address, about, times
from stats_pipeline.audit
order by at desc, id desc
limit %(newest)s;
