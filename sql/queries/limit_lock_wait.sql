-- For the rest of the transaction: whoever comes while we wait for a lock waits as long.
select set_config('lock_timeout', '5s', true);
