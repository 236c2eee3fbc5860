-- Limit the statements of this transaction. A `set statement_timeout` on the function itself would do nothing here.
select set_config('statement_timeout', %(milliseconds)s::integer::text, true);
