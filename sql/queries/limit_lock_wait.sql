-- For the rest of the transaction: sessions that queue behind us for a lock have to wait as long as we do.
select set_config('lock_timeout', '5s', true);
