-- Limit the statements of this transaction, and say which day it is. A `set` on the function itself would do nothing to
-- its timeout.
select
    set_config('statement_timeout', %(milliseconds)s::integer::text, true),
    set_config('TimeZone', %(timezone)s, true),
    set_config('stats_pipeline.timezone', %(timezone)s, true);
