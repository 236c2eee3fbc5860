-- Prepare the trial of a stats function in this transaction: wait for locks at most a second, and return whether a
-- lease of the club is open.
select
    set_config('lock_timeout', '1s', true),
    exists (
        select from stats_pipeline.lease as l
        where l.ended_at is null
            and l.tenant_key = stats_pipeline.tenant_key(
                nullif(%(tenant_id)s::uuid, stats_pipeline.default_tenant()))
    ) as is_busy;
