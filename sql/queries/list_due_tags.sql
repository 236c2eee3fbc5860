-- The tags due for the app now, of one lease or of all; none while the route pauses. Of all leases, only tags that
-- their run's hooks have had three seconds to deliver: sooner, the app would get them twice.
select o.id, o.lease_id, o.tag
from stats_pipeline.outbox as o
where o.delivered_at is null and o.next_try_at <= now()
    and case
        when %(lease_id)s::uuid is null then o.due_at <= now() - interval '3 seconds'
        else o.lease_id = %(lease_id)s
    end
    and not exists (select from stats_pipeline.endpoint as e where e.url = %(route)s and e.next_try_at > now())
order by o.id
limit 1000;
