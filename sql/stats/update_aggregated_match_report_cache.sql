create table if not exists public.aggregated_match_report (
    match_id integer primary key,
    tenant_id uuid not null,
    match_date timestamptz,
    team_a_score integer,
    team_b_score integer,
    team_a_players jsonb,
    team_b_players jsonb,
    team_a_scorers text,
    team_b_scorers text,
    game_milestones jsonb,
    goal_milestones jsonb,
    season_goal_leaders jsonb,
    season_fantasy_leaders jsonb,
    half_season_goal_leaders jsonb,
    half_season_fantasy_leaders jsonb,
    on_fire_player_id integer,
    grim_reaper_player_id integer,
    streaks jsonb default '[]',
    goal_streaks jsonb default '[]',
    feat_breaking_data jsonb not null default '[]',
    config_values jsonb,
    last_updated timestamptz default now()
);

create index if not exists aggregated_match_report_tenant_idx on public.aggregated_match_report (tenant_id);

alter table public.aggregated_match_report enable row level security;
revoke all on public.aggregated_match_report from public, anon, authenticated;
grant select, insert, update, delete on public.aggregated_match_report to service_role;

-- One document about the latest match played: teams, scorers, milestones, leader changes, form players, current streaks
-- and record-breaking feats. Feats compare with the history before the match, computed here, so the result does not
-- depend on which other refresh has already run.
create or replace function public.update_aggregated_match_report_cache(
    target_tenant_id uuid default '00000000-0000-0000-0000-000000000001'
)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    settings jsonb;
    game_step integer;
    goal_step integer;
    min_win integer;
    min_unbeaten integer;
    min_loss integer;
    min_winless integer;
    min_scoring integer;
    min_attendance integer;
    min_goals integer;
    form_days integer;
    form_games integer;
begin
    perform stats_pipeline.lock_refresh('update_aggregated_match_report_cache', target_tenant_id);
    perform stats_pipeline.tell_odd_rows(target_tenant_id);

    settings := stats_pipeline.settings(target_tenant_id);
    game_step := coalesce((settings ->> 'game_milestone_threshold')::integer, 50);
    goal_step := coalesce((settings ->> 'goal_milestone_threshold')::integer, 25);
    min_win := coalesce((settings ->> 'win_streak_threshold')::integer, 4);
    min_unbeaten := coalesce((settings ->> 'unbeaten_streak_threshold')::integer, 6);
    min_loss := coalesce((settings ->> 'loss_streak_threshold')::integer, 4);
    min_winless := coalesce((settings ->> 'winless_streak_threshold')::integer, 6);
    min_scoring := coalesce((settings ->> 'goal_streak_threshold')::integer, 3);
    min_attendance := coalesce((settings ->> 'min_streak_length')::integer, 3);
    min_goals := stats_pipeline.platform_setting('min_goals_for_pb')::integer;
    form_days := coalesce(stats_pipeline.positive_integer(settings ->> 'on_fire_grim_reaper_window_days'), 45);
    form_games := coalesce(stats_pipeline.positive_integer(settings ->> 'on_fire_grim_reaper_min_games'), 4);

    with latest as materialized (
        select m.*
        from stats_pipeline.played_matches(target_tenant_id) as m
        order by m.match_date desc, m.match_id desc
        limit 1
    ),
    lineup as materialized (
        select a.*, p.name
        from stats_pipeline.appearances(target_tenant_id) as a
        inner join stats_pipeline.squad(target_tenant_id) as p on p.player_id = a.player_id
        where a.match_id = (select latest.match_id from latest)
    ),
    teams as (
        select
            coalesce(jsonb_agg(name order by name) filter (where side = 'A'), '[]') as a_players,
            coalesce(jsonb_agg(name order by name) filter (where side = 'B'), '[]') as b_players,
            string_agg(scorer.label, ', ' order by name) filter (where side = 'A' and goals > 0) as a_scorers,
            string_agg(scorer.label, ', ' order by name) filter (where side = 'B' and goals > 0) as b_scorers,
            coalesce(bool_or(not is_ringer), false) as has_regular
        from lineup
        cross join lateral (
            select name || case when goals > 1 then ' (' || goals || ')' else '' end as label
        ) as scorer
    ),
    career as materialized (
        select
            c.player_id,
            c.games,
            p.name,
            p.is_retired is true as is_retired,
            lineup.goals as match_goals,
            lineup.player_id is not null as in_lineup
        from stats_pipeline.careers(target_tenant_id) as c
        inner join stats_pipeline.squad(target_tenant_id) as p on p.player_id = c.player_id
        left join lineup on lineup.player_id = c.player_id
    ),
    reached as materialized (
        select career.player_id, career.name, career.is_retired, career.in_lineup, bests.*
        from career
        cross join lateral stats_pipeline.career_bests(career.games) as bests
    ),

    -- milestones
    milestone as (
        select
            coalesce(
                jsonb_agg(jsonb_build_object('name', name, 'value', games) order by games desc, name)
                filter (where game_step > 0 and games % nullif(game_step, 0) = 0),
                '[]'
            ) as games,
            coalesce(
                jsonb_agg(jsonb_build_object('name', name, 'value', goals_mark) order by goals_mark desc, name)
                filter (where goal_step > 0 and goals_mark > greatest(goals - match_goals, 0)),
                '[]'
            ) as goals
        from (
            select
                career.name,
                career.match_goals,
                cardinality(career.games) as games,
                total.goals,
                total.goals / nullif(goal_step, 0) * goal_step as goals_mark
            from career
            cross join lateral (
                select sum(stats_pipeline.game_goals(game))::integer as goals
                from unnest(career.games) as game
            ) as total
            where career.in_lineup
        ) as totals
    ),

    -- leaders of the season and the half that contain the match
    season as materialized (
        select found_season.*
        from latest
        cross join teams
        cross join stats_pipeline.season_on(target_tenant_id, latest.match_date) as found_season
        where teams.has_regular
    ),
    season_total as (
        select
            period.name as period,
            metric.name as metric,
            p.name,
            sum(metric.value)::integer as total,
            (sum(metric.value) filter (where a.match_date < latest.match_date))::integer as previous_total
        from latest
        cross join season
        cross join lateral (
            values ('season', season.start_date), ('half', season.half_start)
        ) as period (name, first_day)
        inner join stats_pipeline.appearances(target_tenant_id) as a on a.match_date >= period.first_day
        inner join stats_pipeline.squad(target_tenant_id) as p on p.player_id = a.player_id
        cross join lateral (values ('goals', a.goals), ('points', a.points)) as metric (name, value)
        where not a.is_ringer and a.match_date >= (select season.start_date from season)
        group by period.name, metric.name, a.player_id, p.name
    ),
    previous_leader as (
        select distinct on (period, metric) period, metric, name, previous_total
        from season_total
        where previous_total > 0
        order by period, metric, previous_total desc, name
    ),
    leader as (
        select
            season_total.*,
            rank() over (partition by period, metric order by total desc) as place,
            count(*) over (partition by period, metric, total) as sharing
        from season_total
        where total > 0
    ),
    leader_list as (
        select
            leader.period,
            leader.metric,
            jsonb_agg(
                jsonb_build_object(
                    'new_leader', leader.name,
                    'new_leader_' || leader.metric, leader.total,
                    'previous_leader', previous_leader.name,
                    'previous_leader_' || leader.metric, previous_leader.previous_total,
                    'change_type',
                    case
                        when previous_leader.name is null then 'new_leader'
                        when leader.sharing > 1 then 'tied'
                        when previous_leader.name = leader.name then 'remains'
                        else 'overtake'
                    end
                )
                order by leader.name
            ) as entries
        from leader
        left join previous_leader
            on previous_leader.period = leader.period and previous_leader.metric = leader.metric
        where leader.place = 1
        group by leader.period, leader.metric
    ),

    -- form
    form as materialized (
        select
            a.player_id,
            p.name,
            sum(a.points) as points,
            sum(a.goals) as goals,
            coalesce(sum(a.opponent_score), 0) as conceded,
            count(*) filter (where a.clean_sheet) as clean_sheets,
            count(*) filter (where a.heavy_win) as heavy_wins,
            count(*) filter (where a.heavy_loss) as heavy_losses
        from stats_pipeline.appearances(target_tenant_id) as a
        inner join stats_pipeline.squad(target_tenant_id) as p on p.player_id = a.player_id
        where not a.is_ringer
            and a.match_date >= (select latest.match_date - form_days from latest)
        group by a.player_id, p.name
        having count(*) >= form_games
    ),

    -- current streaks
    streak as (
        select distinct on (reached.player_id) reached.name, listed.streak_type, reached.current_value as length
        from teams
        cross join reached
        inner join (
            values
            (1, 'win', 'win', min_win),
            (2, 'undefeated', 'unbeaten', min_unbeaten),
            (3, 'losing', 'loss', min_loss),
            (4, 'winless', 'winless', min_winless)
        ) as listed (priority, metric, streak_type, minimum) on listed.metric = reached.metric
        where teams.has_regular
            and not reached.is_retired
            and reached.current_value >= greatest(listed.minimum, 1)
        order by reached.player_id, listed.priority
    ),
    goal_streak as (
        select reached.name, reached.current_value as matches, total.goals
        from teams
        cross join reached
        inner join career on career.player_id = reached.player_id
        cross join lateral (
            select sum(stats_pipeline.game_goals(game))::integer as goals
            from unnest(career.games[cardinality(career.games) - reached.current_value + 1:]) as game
        ) as total
        where teams.has_regular
            and not reached.is_retired
            and reached.metric = 'scoring'
            and reached.current_value >= greatest(min_scoring, 1)
    ),

    -- feats, against the best of everybody before the match
    record as (
        select metric, max(case when in_lineup then previous_best else best end) as value
        from reached
        group by metric
    ),
    margin as (
        select coalesce(stats_pipeline.biggest_margin(target_tenant_id, latest.match_id), 0) as record
        from latest
    ),
    feat as (
        select
            kind.feat_type,
            reached.name as player_name,
            reached.player_id,
            reached.current_value as new_value,
            record.value as record
        from reached
        inner join record on record.metric = reached.metric
        inner join (
            values
            ('goals', 'most_goals_in_game', min_goals),
            ('win', 'win_streak', min_win),
            ('losing', 'loss_streak', min_loss),
            ('undefeated', 'unbeaten_streak', min_unbeaten),
            ('winless', 'winless_streak', min_winless),
            ('scoring', 'goal_streak', min_scoring),
            ('attendance', 'attendance_streak', min_attendance)
        ) as kind (metric, feat_type, minimum) on kind.metric = reached.metric
        where reached.in_lineup and reached.current_value >= greatest(kind.minimum, record.value, 1)
        union all
        select
            'biggest_victory', 'Team Result', null, abs(latest.team_a_score - latest.team_b_score), margin.record
        from latest
        cross join teams
        cross join margin
        where teams.has_regular
            and abs(latest.team_a_score - latest.team_b_score) >= greatest(margin.record, 1)
    ),
    feat_list as (
        select
            coalesce(
                jsonb_agg(
                    jsonb_build_object(
                        'feat_type', feat_type,
                        'player_name', player_name,
                        'player_id', player_id,
                        'new_value', new_value,
                        'current_record', record,
                        'status', case when new_value > record then 'broken' else 'equaled' end
                    )
                    order by (new_value > record) desc, new_value desc, player_name, feat_type
                ),
                '[]'
            ) as entries
        from feat
        where exists (
            select from stats_pipeline.played_matches(target_tenant_id) as m
            where m.match_id <> (select latest.match_id from latest)
        )
    ),

    fresh as materialized (
        select
            latest.match_id,
            latest.tenant_id,
            latest.match_date::timestamptz as match_date,
            latest.team_a_score,
            latest.team_b_score,
            teams.a_players as team_a_players,
            teams.b_players as team_b_players,
            concat_ws(
                ', ',
                teams.a_scorers,
                case when latest.team_a_own_goals > 0 then 'OG (' || latest.team_a_own_goals || ')' end
            ) as team_a_scorers,
            concat_ws(
                ', ',
                teams.b_scorers,
                case when latest.team_b_own_goals > 0 then 'OG (' || latest.team_b_own_goals || ')' end
            ) as team_b_scorers,
            milestone.games as game_milestones,
            milestone.goals as goal_milestones,
            coalesce(season_goals.entries, '[]') as season_goal_leaders,
            coalesce(season_points.entries, '[]') as season_fantasy_leaders,
            coalesce(half_goals.entries, '[]') as half_season_goal_leaders,
            coalesce(half_points.entries, '[]') as half_season_fantasy_leaders,
            (
                select form.player_id
                from form
                order by points desc, goals desc, conceded, clean_sheets desc, heavy_wins desc, heavy_losses, name,
                    player_id
                limit 1
            ) as on_fire_player_id,
            (
                select form.player_id
                from form
                order by points, goals, conceded desc, clean_sheets, heavy_wins, heavy_losses desc, name,
                    player_id
                limit 1
            ) as grim_reaper_player_id,
            (
                select
                    coalesce(
                        jsonb_agg(
                            jsonb_build_object('name', name, 'streak_type', streak_type, 'streak_count', length)
                            order by length desc, name
                        ),
                        '[]'
                    )
                from streak
            ) as streaks,
            (
                select
                    coalesce(
                        jsonb_agg(
                            jsonb_build_object('name', name, 'matches_with_goals', matches, 'goals_in_streak', goals)
                            order by matches desc, goals desc, name
                        ),
                        '[]'
                    )
                from goal_streak
            ) as goal_streaks,
            feat_list.entries as feat_breaking_data,
            jsonb_build_object(
                'win_streak_threshold', min_win,
                'unbeaten_streak_threshold', min_unbeaten,
                'loss_streak_threshold', min_loss,
                'winless_streak_threshold', min_winless,
                'goal_streak_threshold', min_scoring,
                'game_milestone_threshold', game_step,
                'goal_milestone_threshold', goal_step
            ) as config_values
        from latest
        cross join teams
        cross join milestone
        cross join feat_list
        left join leader_list as season_goals on season_goals.period = 'season' and season_goals.metric = 'goals'
        left join leader_list as season_points on season_points.period = 'season' and season_points.metric = 'points'
        left join leader_list as half_goals on half_goals.period = 'half' and half_goals.metric = 'goals'
        left join leader_list as half_points on half_points.period = 'half' and half_points.metric = 'points'
    ),
    stale as (
        delete from public.aggregated_match_report as stored
        where stored.tenant_id = target_tenant_id
            and not exists (select from fresh where fresh.match_id = stored.match_id)
    )
    insert into public.aggregated_match_report (
        match_id, tenant_id, match_date, team_a_score, team_b_score, team_a_players, team_b_players, team_a_scorers,
        team_b_scorers, game_milestones, goal_milestones, season_goal_leaders, season_fantasy_leaders,
        half_season_goal_leaders, half_season_fantasy_leaders, on_fire_player_id, grim_reaper_player_id, streaks,
        goal_streaks, feat_breaking_data, config_values
    )
    select * from fresh
    except
    select
        match_id, tenant_id, match_date, team_a_score, team_b_score, team_a_players, team_b_players, team_a_scorers,
        team_b_scorers, game_milestones, goal_milestones, season_goal_leaders, season_fantasy_leaders,
        half_season_goal_leaders, half_season_fantasy_leaders, on_fire_player_id, grim_reaper_player_id, streaks,
        goal_streaks, feat_breaking_data, config_values
    from public.aggregated_match_report
    where tenant_id = target_tenant_id
    on conflict (match_id) do update set
        tenant_id = excluded.tenant_id,
        match_date = excluded.match_date,
        team_a_score = excluded.team_a_score,
        team_b_score = excluded.team_b_score,
        team_a_players = excluded.team_a_players,
        team_b_players = excluded.team_b_players,
        team_a_scorers = excluded.team_a_scorers,
        team_b_scorers = excluded.team_b_scorers,
        game_milestones = excluded.game_milestones,
        goal_milestones = excluded.goal_milestones,
        season_goal_leaders = excluded.season_goal_leaders,
        season_fantasy_leaders = excluded.season_fantasy_leaders,
        half_season_goal_leaders = excluded.half_season_goal_leaders,
        half_season_fantasy_leaders = excluded.half_season_fantasy_leaders,
        on_fire_player_id = excluded.on_fire_player_id,
        grim_reaper_player_id = excluded.grim_reaper_player_id,
        streaks = excluded.streaks,
        goal_streaks = excluded.goal_streaks,
        feat_breaking_data = excluded.feat_breaking_data,
        config_values = excluded.config_values,
        last_updated = excluded.last_updated;

    perform stats_pipeline.stamp_cache(target_tenant_id, 'match_report', 'match_report');
end;
$$;

revoke all on function public.update_aggregated_match_report_cache(uuid) from public, anon, authenticated;
grant execute on function public.update_aggregated_match_report_cache(uuid) to service_role;
