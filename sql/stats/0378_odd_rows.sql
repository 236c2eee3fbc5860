-- The rows of a tenant that no statistic takes as they are written, each with what is wrong and what is made of it.
-- A null is not odd: it says that nobody knows. The index player_matches_odd_idx has the second part's condition.
create or replace function stats_pipeline.odd_rows(target_tenant_id uuid)
returns table (source text, row_id integer, problem text)
language sql
stable
rows 10
set search_path = pg_catalog, pg_temp
as $$
    select
        'matches',
        m.match_id,
        case
            when m.match_date = '-infinity' then 'match_date -infinity is no day'
            else format('score %s-%s is not two numbers from 0 to 999', m.team_a_score, m.team_b_score)
        end || ': the match is left out'
    from public.matches as m
    where m.tenant_id = target_tenant_id
        and (
            m.match_date = '-infinity'
            or m.team_a_score not between 0 and 999
            or m.team_b_score not between 0 and 999
        )
    union all
    select
        'player_matches',
        pm.player_match_id,
        concat_ws(
            '; ',
            case
                when pm.goals not between -999 and 999
                    then format('goals %s are not from -999 to 999: counted as none', pm.goals)
            end,
            case
                when coalesce(pm.actual_team, pm.team) not in ('A', 'B')
                    then format('team %L is neither A nor B: the game counts for no side', coalesce(actual_team, team))
            end,
            case
                when pm.result not in ('win', 'draw', 'loss')
                    then format('result %L is none of win, draw, loss: the game counts without one', pm.result)
            end
        )
    from public.player_matches as pm
    where pm.tenant_id = target_tenant_id
        and (
            pm.goals not between -999 and 999
            or coalesce(pm.actual_team, pm.team) not in ('A', 'B')
            or pm.result not in ('win', 'draw', 'loss')
        )
    union all
    select 'player_matches', repeated.player_match_id, 'the player is in this match already: the row is left out'
    from stats_pipeline.repeated_appearances(target_tenant_id) as repeated (player_match_id)
    union all
    select
        'app_config',
        c.config_id,
        format('%s %L is no number in its range: the default counts', c.config_key, left(c.config_value, 40))
    from public.app_config as c
    where c.tenant_id = target_tenant_id
        and not stats_pipeline.readable_setting(c.config_key, c.config_value)
        and (
            c.config_key like any(array['fantasy\_%', 'performance\_%', '%\_threshold', 'on\_fire\_grim\_reaper\_%'])
            or c.config_key in (
                'match_duration_minutes', 'games_required_for_hof', 'hall_of_fame_limit', 'min_games_for_honours',
                'min_streak_length'
            )
        );
$$;

revoke all on function stats_pipeline.odd_rows(uuid) from public, anon, authenticated;
grant execute on function stats_pipeline.odd_rows(uuid) to service_role;
