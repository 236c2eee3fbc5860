-- One row per player and played match of a tenant, seen from the side the player really played for: scores (null
-- without a side), result, heavy results and fantasy points. The one definition of points; every function starts here.
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
        pm.side,
        case pm.side when 'A' then m.team_a_score when 'B' then m.team_b_score end,
        case pm.side when 'A' then m.team_b_score when 'B' then m.team_a_score end,
        pm.result,
        pm.goals,
        pm.clean_sheet,
        played.heavy and pm.result = 'win',
        played.heavy and pm.result = 'loss',
        coalesce(
            rules.attendance + rules.goal * pm.goals
            + case pm.result
                when 'win' then
                    case
                        when played.heavy and pm.clean_sheet then rules.heavy_clean_sheet_win
                        when played.heavy then rules.heavy_win
                        when pm.clean_sheet then rules.clean_sheet_win
                        else rules.win
                    end
                when 'draw' then case when pm.clean_sheet then rules.clean_sheet_draw else rules.draw end
                when 'loss' then case when played.heavy then rules.heavy_loss else rules.loss end
            end,
            0
        )
    from stats_pipeline.point_rules(target_tenant_id) as rules
    cross join stats_pipeline.lineups(target_tenant_id) as pm
    inner join stats_pipeline.played_matches(target_tenant_id) as m on m.match_id = pm.match_id
    inner join stats_pipeline.squad(target_tenant_id) as p on p.player_id = pm.player_id
    cross join lateral (
        select
            abs(m.team_a_score - m.team_b_score) >= rules.heavy_threshold
            and coalesce(pm.side in ('A', 'B'), false) as heavy
    ) as played;
$$;

revoke all on function stats_pipeline.appearances(uuid) from public, anon, authenticated;
grant execute on function stats_pipeline.appearances(uuid) to service_role;
