-- Set the statement timeout of this transaction, and its time zone. A `set` on the function itself would not change its
-- timeout.
select
    set_config('statement_timeout', %(milliseconds)s::integer::text, true),
    set_config('TimeZone', %(timezone)s, true),
    set_config('stats_pipeline.timezone', %(timezone)s, true);
