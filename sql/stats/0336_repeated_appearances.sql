-- The rows of player_matches that name a player of a match again; the first one counts. None are looked for where a
-- unique index forbids them, as the reference table's does.
create or replace function stats_pipeline.repeated_appearances(target_tenant_id uuid)
returns setof integer
language plpgsql
stable
rows 10
set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (
        select from pg_index as i
        where i.indrelid = 'public.player_matches'::regclass
            and i.indisunique
            and i.indisvalid
            and i.indpred is null
            and i.indexprs is null
            and not exists (
                select from generate_series(0, i.indnkeyatts - 1) as position
                inner join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = i.indkey[position]
                where a.attname not in ('tenant_id', 'match_id', 'player_id')
            )
    ) then
        return;
    end if;

    return query
    select counted.player_match_id
    from (
        select
            pm.player_match_id,
            row_number() over (partition by pm.match_id, pm.player_id order by pm.player_match_id) as repetition
        from public.player_matches as pm
        where pm.tenant_id = target_tenant_id and pm.match_id is not null and pm.player_id is not null
    ) as counted
    where counted.repetition > 1;
end;
$$;

revoke all on function stats_pipeline.repeated_appearances(uuid) from public, anon, authenticated;
grant execute on function stats_pipeline.repeated_appearances(uuid) to service_role;
