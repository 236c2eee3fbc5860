-- One row per player and match of a tenant, seen from the side the player really played for: scores, result, heavy
-- results and fantasy points. The one definition of points; every function starts here.
-- No `set search_path`: that clause would stop the planner from inlining the function, and with it from dropping unused
-- columns and pushing date and player filters down to the indexes. All names are schema-qualified instead.
create or replace function stats_pipeline.appearances(target_tenant_id uuid)
returns table (
    player_id integer,
    is_ringer boolean,
    match_id integer,
    match_date date,
    side text,
    own_score integer,
    opponent_score integer,
    result text,
    goals integer,
    clean_sheet boolean,
    heavy_win boolean,
    heavy_loss boolean,
    points integer
)
language sql
stable
as $$
    select
        p.player_id,
        p.is_ringer,
        m.match_id,
        m.match_date,
        played.side,
        case played.side when 'A' then m.team_a_score else m.team_b_score end,
        case played.side when 'A' then m.team_b_score else m.team_a_score end,
        pm.result::text,
        played.goals,
        played.clean_sheet,
        played.heavy and pm.result = 'win',
        played.heavy and pm.result = 'loss',
        coalesce(
            rules.attendance + rules.goal * played.goals
            + case pm.result
                when 'win' then
                    case
                        when played.heavy and played.clean_sheet then rules.heavy_clean_sheet_win
                        when played.heavy then rules.heavy_win
                        when played.clean_sheet then rules.clean_sheet_win
                        else rules.win
                    end
                when 'draw' then case when played.clean_sheet then rules.clean_sheet_draw else rules.draw end
                when 'loss' then case when played.heavy then rules.heavy_loss else rules.loss end
            end,
            0
        )
    from stats_pipeline.point_rules(target_tenant_id) as rules
    cross join public.player_matches as pm
    inner join public.matches as m on m.match_id = pm.match_id and m.tenant_id = pm.tenant_id
    inner join public.players as p on p.player_id = pm.player_id and p.tenant_id = pm.tenant_id
    cross join lateral (
        select
            coalesce(pm.actual_team, pm.team)::text as side,
            coalesce(pm.goals, 0) as goals,
            coalesce(pm.clean_sheet, false) as clean_sheet,
            abs(m.team_a_score - m.team_b_score) >= rules.heavy_threshold
            and coalesce(coalesce(pm.actual_team, pm.team) in ('A', 'B'), false) as heavy
    ) as played
    where pm.tenant_id = target_tenant_id;
$$;

revoke all on function stats_pipeline.appearances(uuid) from public, anon, authenticated;
grant execute on function stats_pipeline.appearances(uuid) to service_role;
