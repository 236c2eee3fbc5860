-- The newest rows of the audit, newest first: so many of what was done, and so many of what was refused.
select a.at, a.action, a.outcome, a.who, a.role, a.address, a.about, a.times
from (values ('done', %(done)s::integer), ('refused', %(refused)s::integer)) as w (outcome, newest)
cross join lateral (
    select *
    from stats_pipeline.audit as t
    where t.outcome = w.outcome
    order by t.at desc, t.id desc
    limit w.newest
) as a
order by a.at desc, a.id desc;
