-- What is due for the app now, of one function of one run or of all; nothing while the route is given a rest.
select o.id, o.run_id, o.tag
from stats_pipeline.outbox as o
where o.delivered_at is null and o.next_try_at <= now()
    and (%(run_id)s::text is null or (o.run_id = %(run_id)s and o.rpc = %(rpc)s))
    and not exists (select from stats_pipeline.endpoint as e where e.url = %(route)s and e.next_try_at > now())
order by o.id
limit 1000;
