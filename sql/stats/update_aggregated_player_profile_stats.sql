create table if not exists public.aggregated_player_profile_stats (
    player_id integer primary key,
    tenant_id uuid not null,
    name text,
    games_played integer default 0,
    fantasy_points integer default 0,
    most_game_goals integer,
    most_game_goals_date text,
    most_season_goals integer,
    most_season_goals_year text,
    win_streak integer default 0,
    win_streak_dates text,
    losing_streak integer default 0,
    losing_streak_dates text,
    undefeated_streak integer default 0,
    undefeated_streak_dates text,
    winless_streak integer default 0,
    winless_streak_dates text,
    attendance_streak integer default 0,
    attendance_streak_dates text,
    scoring_streak integer default 0,
    scoring_streak_dates text,
    selected_club jsonb,
    yearly_stats jsonb default '[]',
    last_updated timestamptz not null default now(),
    teammate_chemistry_all json default '[]'
);

create index if not exists aggregated_player_profile_stats_tenant_idx
on public.aggregated_player_profile_stats (tenant_id);

alter table public.aggregated_player_profile_stats enable row level security;
revoke all on public.aggregated_player_profile_stats from public, anon, authenticated;
grant select, insert, update, delete on public.aggregated_player_profile_stats to service_role;

-- The career page of every regular, those who never played included: totals, bests, longest streaks with their dates,
-- and figures per calendar year.
create or replace function public.update_aggregated_player_profile_stats(
    target_tenant_id uuid default '00000000-0000-0000-0000-000000000001'
)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    settings jsonb;
    match_minutes integer;
begin
    perform stats_pipeline.lock_refresh('update_aggregated_player_profile_stats', target_tenant_id);
    perform stats_pipeline.tell_odd_rows(target_tenant_id);

    settings := stats_pipeline.settings(target_tenant_id);
    match_minutes := coalesce((settings ->> 'match_duration_minutes')::integer, 60);

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
            max(goals) as most_goals,
            (array_agg(year order by goals desc, year desc))[1] as most_goals_year,
            jsonb_agg(
                jsonb_build_object(
                    'year', year,
                    'games_played', games,
                    'goals_scored', goals,
                    'fantasy_points', points,
                    'minutes_per_goal',
                    case when goals > 0 then round(games::numeric * match_minutes / goals, 1) end,
                    'points_per_game', round(points::numeric / games, 1)
                )
                order by year desc
            ) as years
        from yearly
        group by player_id
    ),
    calendar as materialized (
        select array_agg(m.match_date order by m.match_no) as dates
        from stats_pipeline.numbered_matches(target_tenant_id) as m
    ),
    best as (
        select found.player_id, summary.by_metric
        from calendar
        cross join stats_pipeline.careers(target_tenant_id) as found
        cross join lateral (
            select
                jsonb_object_agg(
                    reached.metric,
                    jsonb_build_object(
                        'value', reached.best,
                        'last_day', last_day.label,
                        'days', first_day.label || ' to ' || last_day.label
                    )
                ) as by_metric
            from stats_pipeline.career_bests(found.games) as reached
            cross join lateral (
                select to_char(calendar.dates[(found.games[reached.best_at] >> 32)::integer], 'YYYY-MM-DD') as label
            ) as last_day
            cross join lateral (
                select
                    to_char(
                        calendar.dates[(found.games[reached.best_at - reached.best + 1] >> 32)::integer], 'YYYY-MM-DD'
                    ) as label
            ) as first_day
            where reached.best > 0
        ) as summary
    ),
    fresh as materialized (
        select
            p.player_id,
            p.tenant_id,
            p.name,
            coalesce(career.games, 0) as games_played,
            coalesce(career.points, 0) as fantasy_points,
            (best.by_metric #>> '{goals,value}')::integer as most_game_goals,
            best.by_metric #>> '{goals,last_day}' as most_game_goals_date,
            case when career.most_goals > 0 then career.most_goals end as most_season_goals,
            case when career.most_goals > 0 then career.most_goals_year::text end as most_season_goals_year,
            coalesce((best.by_metric #>> '{win,value}')::integer, 0) as win_streak,
            best.by_metric #>> '{win,days}' as win_streak_dates,
            coalesce((best.by_metric #>> '{losing,value}')::integer, 0) as losing_streak,
            best.by_metric #>> '{losing,days}' as losing_streak_dates,
            coalesce((best.by_metric #>> '{undefeated,value}')::integer, 0) as undefeated_streak,
            best.by_metric #>> '{undefeated,days}' as undefeated_streak_dates,
            coalesce((best.by_metric #>> '{winless,value}')::integer, 0) as winless_streak,
            best.by_metric #>> '{winless,days}' as winless_streak_dates,
            coalesce((best.by_metric #>> '{attendance,value}')::integer, 0) as attendance_streak,
            best.by_metric #>> '{attendance,days}' as attendance_streak_dates,
            coalesce((best.by_metric #>> '{scoring,value}')::integer, 0) as scoring_streak,
            best.by_metric #>> '{scoring,days}' as scoring_streak_dates,
            p.selected_club,
            coalesce(career.years, '[]') as yearly_stats
        from stats_pipeline.squad(target_tenant_id) as p
        left join career on career.player_id = p.player_id
        left join best on best.player_id = p.player_id
        where not p.is_ringer
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

    perform stats_pipeline.stamp_cache(
        target_tenant_id, 'player_profile_stats', 'player_profile_stats', relabel => true
    );
end;
$$;

revoke all on function public.update_aggregated_player_profile_stats(uuid) from public, anon, authenticated;
grant execute on function public.update_aggregated_player_profile_stats(uuid) to service_role;
