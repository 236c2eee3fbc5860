-- Why a club cannot have jobs, as a sentence that names the field; null if it can. If `tenants_are_known`, it must be
-- one of them. The default club, which is null here, always can, and so can the one that `rehearse` invents.
create or replace function stats_pipeline.tenant_problem(club uuid) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    is_there boolean := true;
begin
    if club::text <> coalesce(current_setting('stats_pipeline.made_up_club', true), '')
        and stats_pipeline.tenants_are_known() then
        -- The table may not exist: this is only planned if it does.
        execute 'select exists (select from public.tenants as t where t.id = $1)' into is_there using club;
    end if;
    return case when not is_there then format('tenantId must be the id of a row of public.tenants; %s is none', club) end;
end;
$$;

revoke all on function stats_pipeline.tenant_problem(uuid) from public, anon, authenticated;
