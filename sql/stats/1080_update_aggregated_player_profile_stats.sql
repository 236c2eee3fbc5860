-- The career page of every regular, those who never played included: totals, bests, longest streaks with their dates,
-- and figures per calendar year.
-- A best and the appearance that reached it travel as one number (value in the high 32 bits, the player's appearance
-- number in the low ones), so one maximum finds the longest streak and, among equals, the one that ended last.
create or replace function public.update_aggregated_player_profile_stats(
    target_tenant_id uuid default '00000000-0000-0000-0000-000000000001'
)
returns void
language plpgsql
set search_path = ''
set jit = off
as $$
declare
    match_minutes integer := coalesce(stats_pipeline.setting(target_tenant_id, 'match_duration_minutes')::integer, 60);
begin
    perform stats_pipeline.lock_refresh('update_aggregated_player_profile_stats', target_tenant_id);

    with yearly as (
        select
            a.player_id,
            date_part('year', a.match_date)::integer as year,
            count(*)::integer as games,
            sum(a.goals)::integer as goals,
            sum(a.points)::integer as points
        from stats_pipeline.appearances(target_tenant_id) as a
        where not a.is_ringer
        group by 1, 2
    ),
    career as (
        select
            player_id,
            sum(games)::integer as games,
            sum(points)::integer as points,
            max(goals::bigint << 32 | year) as best_year,
            jsonb_agg(
                jsonb_build_object(
                    'year', year,
                    'games_played', games,
                    'goals_scored', goals,
                    'fantasy_points', points,
                    'minutes_per_goal', round(games::numeric * match_minutes / nullif(goals, 0), 1),
                    'points_per_game', round(points::numeric / games, 1)
                )
                order by year desc
            ) as years
        from yearly
        group by player_id
    ),
    best as (
        select
            player_id,
            array_agg(match_date order by appearance_no) as dates,
            max(goals::bigint << 32 | appearance_no) as game,
            max(win::bigint << 32 | appearance_no) as win,
            max(losing::bigint << 32 | appearance_no) as losing,
            max(undefeated::bigint << 32 | appearance_no) as undefeated,
            max(winless::bigint << 32 | appearance_no) as winless,
            max(attendance::bigint << 32 | appearance_no) as attendance,
            max(scoring::bigint << 32 | appearance_no) as scoring
        from stats_pipeline.running_streaks(target_tenant_id)
        group by player_id
    ),
    longest as (
        select
            best.player_id,
            kind.name,
            span.length,
            to_char(best.dates[span.last_no - span.length + 1], 'YYYY-MM-DD')
            || ' to ' || to_char(best.dates[span.last_no], 'YYYY-MM-DD') as dates
        from best
        cross join lateral (
            values
            ('win', best.win),
            ('losing', best.losing),
            ('undefeated', best.undefeated),
            ('winless', best.winless),
            ('attendance', best.attendance),
            ('scoring', best.scoring)
        ) as kind (name, packed)
        cross join lateral (
            select (kind.packed >> 32)::integer as length, (kind.packed & 4294967295)::integer as last_no
        ) as span
        where span.length > 0
    ),
    streaks as (
        select
            player_id,
            jsonb_object_agg(name, jsonb_build_object('length', length, 'dates', dates)) as by_name
        from longest
        group by player_id
    ),
    fresh as materialized (
        select
            p.player_id,
            p.tenant_id,
            p.name::text as name,
            coalesce(career.games, 0) as games_played,
            coalesce(career.points, 0) as fantasy_points,
            nullif(best.game >> 32, 0)::integer as most_game_goals,
            case
                when best.game >> 32 > 0 then to_char(best.dates[(best.game & 4294967295)::integer], 'YYYY-MM-DD')
            end as most_game_goals_date,
            nullif(career.best_year >> 32, 0)::integer as most_season_goals,
            case when career.best_year >> 32 > 0 then (career.best_year & 4294967295)::text end as most_season_goals_year,
            coalesce((streaks.by_name #>> '{win,length}')::integer, 0) as win_streak,
            streaks.by_name #>> '{win,dates}' as win_streak_dates,
            coalesce((streaks.by_name #>> '{losing,length}')::integer, 0) as losing_streak,
            streaks.by_name #>> '{losing,dates}' as losing_streak_dates,
            coalesce((streaks.by_name #>> '{undefeated,length}')::integer, 0) as undefeated_streak,
            streaks.by_name #>> '{undefeated,dates}' as undefeated_streak_dates,
            coalesce((streaks.by_name #>> '{winless,length}')::integer, 0) as winless_streak,
            streaks.by_name #>> '{winless,dates}' as winless_streak_dates,
            coalesce((streaks.by_name #>> '{attendance,length}')::integer, 0) as attendance_streak,
            streaks.by_name #>> '{attendance,dates}' as attendance_streak_dates,
            coalesce((streaks.by_name #>> '{scoring,length}')::integer, 0) as scoring_streak,
            streaks.by_name #>> '{scoring,dates}' as scoring_streak_dates,
            p.selected_club,
            coalesce(career.years, '[]') as yearly_stats
        from public.players as p
        left join career on career.player_id = p.player_id
        left join best on best.player_id = p.player_id
        left join streaks on streaks.player_id = p.player_id
        where p.tenant_id = target_tenant_id and not p.is_ringer
    ),
    stale as (
        delete from public.aggregated_player_profile_stats as stored
        where stored.tenant_id = target_tenant_id
            and not exists (select from fresh where fresh.player_id = stored.player_id)
    )
    insert into public.aggregated_player_profile_stats (
        player_id, tenant_id, name, games_played, fantasy_points, most_game_goals, most_game_goals_date,
        most_season_goals, most_season_goals_year, win_streak, win_streak_dates, losing_streak, losing_streak_dates,
        undefeated_streak, undefeated_streak_dates, winless_streak, winless_streak_dates, attendance_streak,
        attendance_streak_dates, scoring_streak, scoring_streak_dates, selected_club, yearly_stats
    )
    select * from fresh
    except
    select
        player_id, tenant_id, name, games_played, fantasy_points, most_game_goals, most_game_goals_date,
        most_season_goals, most_season_goals_year, win_streak, win_streak_dates, losing_streak, losing_streak_dates,
        undefeated_streak, undefeated_streak_dates, winless_streak, winless_streak_dates, attendance_streak,
        attendance_streak_dates, scoring_streak, scoring_streak_dates, selected_club, yearly_stats
    from public.aggregated_player_profile_stats
    where tenant_id = target_tenant_id
    on conflict (player_id) do update set
        tenant_id = excluded.tenant_id,
        name = excluded.name,
        games_played = excluded.games_played,
        fantasy_points = excluded.fantasy_points,
        most_game_goals = excluded.most_game_goals,
        most_game_goals_date = excluded.most_game_goals_date,
        most_season_goals = excluded.most_season_goals,
        most_season_goals_year = excluded.most_season_goals_year,
        win_streak = excluded.win_streak,
        win_streak_dates = excluded.win_streak_dates,
        losing_streak = excluded.losing_streak,
        losing_streak_dates = excluded.losing_streak_dates,
        undefeated_streak = excluded.undefeated_streak,
        undefeated_streak_dates = excluded.undefeated_streak_dates,
        winless_streak = excluded.winless_streak,
        winless_streak_dates = excluded.winless_streak_dates,
        attendance_streak = excluded.attendance_streak,
        attendance_streak_dates = excluded.attendance_streak_dates,
        scoring_streak = excluded.scoring_streak,
        scoring_streak_dates = excluded.scoring_streak_dates,
        selected_club = excluded.selected_club,
        yearly_stats = excluded.yearly_stats,
        last_updated = excluded.last_updated;

    perform stats_pipeline.stamp_cache(target_tenant_id, 'player_profile_stats', 'player_profile_stats', relabel => true);
end;
$$;

revoke all on function public.update_aggregated_player_profile_stats(uuid) from public, anon, authenticated;
grant execute on function public.update_aggregated_player_profile_stats(uuid) to service_role;
