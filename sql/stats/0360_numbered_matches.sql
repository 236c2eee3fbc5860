-- A tenant's played matches in match order, numbered from 1 without gaps. Inlined, hence no `set search_path`.
create or replace function stats_pipeline.numbered_matches(target_tenant_id uuid)
returns table (match_no integer, match_id integer, match_date date)
language sql
stable
as $$
    select
        row_number() over (order by m.match_date, m.match_id)::integer,
        m.match_id,
        m.match_date
    from stats_pipeline.played_matches(target_tenant_id) as m;
$$;

revoke all on function stats_pipeline.numbered_matches(uuid) from public, anon, authenticated;
grant execute on function stats_pipeline.numbered_matches(uuid) to service_role;
