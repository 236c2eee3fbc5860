-- A stats function is to be tried in this transaction: wait for locks no longer than a second, and say whether a lease
-- of the club is open.
select
    set_config('lock_timeout', '1s', true),
    exists (
        select from stats_pipeline.lease as l
        where l.ended_at is null
            and l.tenant_key = stats_pipeline.tenant_key(
                nullif(%(tenant_id)s::uuid, stats_pipeline.default_tenant()))
    ) as is_busy;
