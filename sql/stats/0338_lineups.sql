-- A tenant's rows of player_matches as they are taken, of all matches: one per player and match, on the side the player
-- really played for, goals from -999 to 999 as written and others as none. What is not taken is told by odd_rows.
-- Inlined, hence no `set search_path`; the array, so that repetitions are looked for once.
create or replace function stats_pipeline.lineups(target_tenant_id uuid)
returns table (
    player_id integer,
    match_id integer,
    side text,
    goals integer,
    clean_sheet boolean,
    result text
)
language sql
stable
as $$
    select
        pm.player_id,
        pm.match_id,
        coalesce(pm.actual_team, pm.team)::text,
        case when pm.goals between -999 and 999 then pm.goals else 0 end,
        coalesce(pm.clean_sheet, false),
        pm.result::text
    from public.player_matches as pm
    where pm.tenant_id = target_tenant_id
        and pm.player_match_id <> all(
            array(
                select repeated.player_match_id
                from stats_pipeline.repeated_appearances(target_tenant_id) as repeated (player_match_id)
            )
        );
$$;

revoke all on function stats_pipeline.lineups(uuid) from public, anon, authenticated;
grant execute on function stats_pipeline.lineups(uuid) to service_role;
