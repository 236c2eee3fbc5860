-- Podiums of the finished seasons, and one document of all-time records. A record is shared: every holder is listed.
create or replace function public.update_aggregated_season_honours_and_records(
    target_tenant_id uuid default '00000000-0000-0000-0000-000000000001'
)
returns void
language plpgsql
set search_path = ''
set jit = off
as $$
declare
    min_games integer := coalesce(stats_pipeline.setting(target_tenant_id, 'min_games_for_honours')::integer, 10);
    min_attendance integer := coalesce(stats_pipeline.setting(target_tenant_id, 'min_streak_length')::integer, 3);
begin
    perform stats_pipeline.lock_refresh('update_aggregated_season_honours_and_records', target_tenant_id);

    with total as (
        select
            s.id as season_id,
            s.start_date,
            s.end_date,
            a.player_id,
            sum(a.points)::integer as points,
            sum(a.goals)::integer as goals
        from public.seasons as s
        inner join stats_pipeline.appearances(target_tenant_id) as a
            on a.match_date between s.start_date and s.end_date
        where s.tenant_id = target_tenant_id and s.end_date < stats_pipeline.stats_today() and not a.is_ringer
        group by s.id, a.player_id
        having count(*) >= min_games
    ),
    ranked as (
        select
            total.*,
            jsonb_build_object('name', p.name, 'points', total.points) as winner,
            jsonb_build_object('name', p.name, 'goals', total.goals) as scorer,
            row_number() over (partition by total.season_id order by total.points desc, p.name) as points_place,
            row_number() over (partition by total.season_id order by total.goals desc, p.name) as goals_place
        from total
        inner join public.players as p on p.player_id = total.player_id
    ),
    fresh as materialized (
        select
            season_id,
            to_char(start_date, 'YYYY')
            || case
                when date_part('year', start_date) = date_part('year', end_date) then ''
                else to_char(end_date, '-YYYY')
            end as season_name,
            jsonb_build_object(
                'winners', coalesce(jsonb_agg(winner) filter (where points_place = 1), '[]'),
                'runners_up', coalesce(jsonb_agg(winner) filter (where points_place = 2), '[]'),
                'third_place', coalesce(jsonb_agg(winner) filter (where points_place = 3), '[]')
            ) as season_winners,
            jsonb_build_object(
                'winners', coalesce(jsonb_agg(scorer) filter (where goals_place = 1), '[]'),
                'runners_up', coalesce(jsonb_agg(scorer) filter (where goals_place = 2), '[]'),
                'third_place', coalesce(jsonb_agg(scorer) filter (where goals_place = 3), '[]')
            ) as top_scorers
        from ranked
        group by season_id, start_date, end_date
    ),
    stale as (
        delete from public.aggregated_season_honours as stored
        where stored.tenant_id = target_tenant_id
            and not exists (select from fresh where fresh.season_id = stored.season_id)
    )
    insert into public.aggregated_season_honours (tenant_id, season_id, season_name, season_winners, top_scorers)
    select target_tenant_id, season_id, season_name, season_winners, top_scorers
    from fresh
    except
    select tenant_id, season_id, season_name, season_winners, top_scorers
    from public.aggregated_season_honours
    where tenant_id = target_tenant_id
    on conflict (season_id, tenant_id) do update set
        season_name = excluded.season_name,
        season_winners = excluded.season_winners,
        top_scorers = excluded.top_scorers,
        last_updated = excluded.last_updated;

    with streak as materialized (
        select * from stats_pipeline.running_streaks(target_tenant_id)
    ),
    record as materialized (
        select
            max(goals) as goals,
            max(win) as win,
            max(losing) as losing,
            max(undefeated) as undefeated,
            max(winless) as winless,
            max(scoring) as scoring,
            max(attendance) as attendance
        from streak
    ),
    holder as (
        select
            kind.name as kind,
            kind.length,
            streak.player_id,
            p.name,
            streak.match_id as last_match_id,
            streak.match_date as end_date,
            first_game.match_date as start_date
        from record
        inner join streak
            on streak.win = record.win
            or streak.losing = record.losing
            or streak.undefeated = record.undefeated
            or streak.winless = record.winless
            or streak.scoring = record.scoring
            or streak.attendance = record.attendance
        cross join lateral (
            values
            ('Win Streak', streak.win, record.win, 1),
            ('Losing Streak', streak.losing, record.losing, 1),
            ('Undefeated Streak', streak.undefeated, record.undefeated, 1),
            ('Winless Streak', streak.winless, record.winless, 1),
            ('scoring', streak.scoring, record.scoring, 1),
            ('attendance', streak.attendance, record.attendance, greatest(min_attendance, 1))
        ) as kind (name, length, longest, minimum)
        inner join streak as first_game
            on first_game.player_id = streak.player_id
            and first_game.appearance_no = streak.appearance_no - kind.length + 1
        inner join public.players as p on p.player_id = streak.player_id
        where kind.length = kind.longest and kind.length >= kind.minimum
    ),
    holder_list as (
        select
            kind,
            jsonb_agg(
                jsonb_build_object('name', name, 'streak', length, 'start_date', start_date, 'end_date', end_date)
                order by end_date desc, name, last_match_id
            ) as holders
        from (
            select
                holder.*,
                row_number() over (
                    partition by kind, player_id order by end_date desc, last_match_id desc
                ) as recency
            from holder
        ) as numbered
        where kind <> 'attendance' or recency = 1
        group by kind
    ),
    top_score as (
        select
            jsonb_agg(
                jsonb_build_object(
                    'name', p.name,
                    'goals', a.goals,
                    'date', a.match_date,
                    'score', a.own_score || '-' || a.opponent_score
                )
                order by a.match_date desc, p.name, a.match_id
            ) as entries
        from stats_pipeline.appearances(target_tenant_id) as a
        inner join public.players as p on p.player_id = a.player_id
        where not a.is_ringer and a.goals > 0 and a.goals = (select record.goals from record)
    ),
    victory as (
        select m.*, rank() over (order by abs(m.team_a_score - m.team_b_score) desc) as place
        from public.matches as m
        where m.tenant_id = target_tenant_id
            and m.team_a_score <> m.team_b_score
            and m.match_id in (select streak.match_id from streak)
    ),
    side_list as (
        select
            a.match_id,
            a.side,
            string_agg(
                p.name || case when a.goals > 0 then ' (' || a.goals || ')' else '' end, ', ' order by p.name
            ) as players
        from stats_pipeline.appearances(target_tenant_id) as a
        inner join public.players as p on p.player_id = a.player_id
        where not a.is_ringer
            and a.match_id = any(array(select victory.match_id from victory where victory.place = 1))
        group by a.match_id, a.side
    ),
    top_victory as (
        select
            jsonb_agg(
                jsonb_build_object(
                    'team_a_score', victory.team_a_score,
                    'team_b_score', victory.team_b_score,
                    'team_a_players', side_a.players,
                    'team_b_players', side_b.players,
                    'date', victory.match_date
                )
                order by victory.match_date desc, victory.match_id
            ) as entries
        from victory
        left join side_list as side_a on side_a.match_id = victory.match_id and side_a.side = 'A'
        left join side_list as side_b on side_b.match_id = victory.match_id and side_b.side = 'B'
        where victory.place = 1
    )
    insert into public.aggregated_records as stored (tenant_id, records)
    select
        target_tenant_id,
        jsonb_build_object(
            'most_goals_in_game', coalesce((select entries from top_score), '[]'),
            'biggest_victory', coalesce((select entries from top_victory), '[]'),
            'consecutive_goals_streak',
            coalesce((select holders from holder_list where kind = 'scoring'), '[]'),
            'streaks',
            coalesce(
                (
                    select jsonb_object_agg(kind, jsonb_build_object('holders', holders))
                    from holder_list
                    where kind like '% Streak'
                ),
                '{}'
            ),
            'attendance_streak',
            coalesce((select holders from holder_list where kind = 'attendance'), '[]')
        )
    on conflict (tenant_id) do update set
        records = excluded.records,
        last_updated = excluded.last_updated
    where stored.records is distinct from excluded.records;

    perform stats_pipeline.stamp_cache(target_tenant_id, 'honour_roll', 'honour_roll');
end;
$$;

revoke all on function public.update_aggregated_season_honours_and_records(uuid) from public, anon, authenticated;
grant execute on function public.update_aggregated_season_honours_and_records(uuid) to service_role;
