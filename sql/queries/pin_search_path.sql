-- For the rest of the transaction: the server then writes definitions with the schema of every name.
select set_config('search_path', 'pg_catalog, pg_temp', true);
