-- One warning, of one line, about the rows that a refresh does not take as they are written; none without such rows.
create or replace function stats_pipeline.tell_odd_rows(target_tenant_id uuid)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    first_one text;
    others bigint;
begin
    select format('%s %s: %s', odd.source, odd.row_id, odd.problem), count(*) over () - 1
    into first_one, others
    from stats_pipeline.odd_rows(target_tenant_id) as odd
    order by odd.source, odd.row_id
    limit 1;
    if found then
        raise warning '%', first_one || case when others > 0 then format(' (and %s more)', others) else '' end
        using hint = format('select * from stats_pipeline.odd_rows(%L)', target_tenant_id);
    end if;
end;
$$;

revoke all on function stats_pipeline.tell_odd_rows(uuid) from public, anon, authenticated;
grant execute on function stats_pipeline.tell_odd_rows(uuid) to service_role;
