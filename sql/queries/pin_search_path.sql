-- For the rest of the transaction: definitions are told with the schemas of all that they name.
select set_config('search_path', 'pg_catalog, pg_temp', true);
