-- The three roles that Supabase's Data API uses, for a database that has none of them.
do $$
begin
    if not exists (select from pg_catalog.pg_roles where rolname in ('anon', 'authenticated', 'service_role')) then
        create role anon nologin;
        create role authenticated nologin;
        create role service_role nologin bypassrls;
    end if;
exception
    when duplicate_object or unique_violation then null; -- another database of this server is being migrated
end;
$$;

revoke all on schema stats_pipeline from public, anon, authenticated;
grant usage on schema stats_pipeline to service_role;
