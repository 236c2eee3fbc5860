-- Take back a lease that no run will claim.
select stats_pipeline.void_lease(%(lease_id)s::uuid, %(problem)s::text);
