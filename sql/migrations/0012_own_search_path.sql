-- Types of a caller's pg_temp come before those of pg_catalog unless it is named last, also in a function of ours that
-- the app has not brought itself.
do $$
begin
    if exists (
        select from pg_catalog.pg_proc as p
        where p.oid = to_regprocedure('public.update_updated_at_column()') and p.proconfig = array['search_path=""']
    ) then
        alter function public.update_updated_at_column() set search_path = pg_catalog, pg_temp;
    end if;
end;
$$;
