-- Podiums of the finished seasons, and one document of all-time records. A record is shared: every holder is listed.
create or replace function public.update_aggregated_season_honours_and_records(
    target_tenant_id uuid default '00000000-0000-0000-0000-000000000001'
)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    settings jsonb;
    min_games integer;
    min_attendance integer;
begin
    perform stats_pipeline.lock_refresh('update_aggregated_season_honours_and_records', target_tenant_id);
    perform stats_pipeline.tell_odd_rows(target_tenant_id);

    settings := stats_pipeline.settings(target_tenant_id);
    min_games := coalesce((settings ->> 'min_games_for_honours')::integer, 10);
    min_attendance := coalesce((settings ->> 'min_streak_length')::integer, 3);

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
        where s.tenant_id = target_tenant_id
            and isfinite(s.start_date)
            and s.end_date < (select stats_pipeline.stats_today(target_tenant_id))
            and not a.is_ringer
        group by s.id, a.player_id
        having count(*) >= min_games
    ),
    ranked as (
        select
            total.*,
            jsonb_build_object('name', p.name, 'points', total.points) as winner,
            jsonb_build_object('name', p.name, 'goals', total.goals) as scorer,
            row_number() over (
                partition by total.season_id order by total.points desc, p.name, p.player_id
            ) as points_place,
            row_number() over (
                partition by total.season_id order by total.goals desc, p.name, p.player_id
            ) as goals_place
        from total
        inner join stats_pipeline.squad(target_tenant_id) as p on p.player_id = total.player_id
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

    with calendar as materialized (
        select array_agg(m.match_date order by m.match_no) as dates
        from stats_pipeline.numbered_matches(target_tenant_id) as m
    ),
    career as materialized (
        select c.player_id, c.games
        from stats_pipeline.careers(target_tenant_id) as c
    ),
    best as materialized (
        select
            career.player_id,
            reached.metric,
            reached.best,
            max(reached.best) over (partition by reached.metric) as record
        from career
        cross join lateral stats_pipeline.career_bests(career.games) as reached
    ),
    -- A player may hold a record more than once, so the careers of the holders are read again. Materialized, so that
    -- what is sorted later are dates and not the arrays they were taken from.
    holder as materialized (
        select
            best.metric,
            best.record as length,
            p.player_id,
            p.name,
            streak.match_no as last_match_no,
            calendar.dates[streak.match_no] as end_date,
            calendar.dates[(career.games[streak.appearance_no - best.record + 1] >> 32)::integer] as start_date
        from calendar
        cross join best
        inner join career on career.player_id = best.player_id
        inner join stats_pipeline.squad(target_tenant_id) as p on p.player_id = best.player_id
        cross join lateral stats_pipeline.running_streaks(career.games) as streak
        where best.best = best.record
            and best.record >= case best.metric when 'attendance' then greatest(min_attendance, 1) else 1 end
            and best.record = case best.metric
                when 'win' then streak.win
                when 'losing' then streak.losing
                when 'undefeated' then streak.undefeated
                when 'winless' then streak.winless
                when 'scoring' then streak.scoring
                when 'attendance' then streak.attendance
            end
    ),
    holder_list as (
        select
            metric,
            jsonb_agg(
                jsonb_build_object('name', name, 'streak', length, 'start_date', start_date, 'end_date', end_date)
                order by end_date desc, name, last_match_no
            ) as holders
        from (
            select
                holder.*,
                row_number() over (partition by metric, player_id order by last_match_no desc) as recency
            from holder
        ) as numbered
        where metric <> 'attendance' or recency = 1
        group by metric
    ),
    top_score as (
        select
            jsonb_agg(
                jsonb_build_object(
                    'name', p.name,
                    'goals', a.goals,
                    'date', a.match_date,
                    'score', coalesce(a.own_score || '-' || a.opponent_score, '')
                )
                order by a.match_date desc, p.name, a.match_id
            ) as entries
        from stats_pipeline.appearances(target_tenant_id) as a
        inner join stats_pipeline.squad(target_tenant_id) as p on p.player_id = a.player_id
        where not a.is_ringer
            and a.goals > 0
            and a.goals = (select max(best.record) from best where best.metric = 'goals')
    ),
    victory as (
        select
            m.match_id,
            m.match_date,
            m.team_a_score,
            m.team_b_score,
            string_agg(side.label, ', ' order by p.name) filter (where a.side = 'A') as team_a_players,
            string_agg(side.label, ', ' order by p.name) filter (where a.side = 'B') as team_b_players
        from stats_pipeline.played_matches(target_tenant_id) as m
        inner join stats_pipeline.appearances(target_tenant_id) as a on a.match_id = m.match_id
        inner join stats_pipeline.squad(target_tenant_id) as p on p.player_id = a.player_id
        cross join lateral (
            select p.name || case when a.goals > 0 then ' (' || a.goals || ')' else '' end as label
        ) as side
        where abs(m.team_a_score - m.team_b_score) = (select stats_pipeline.biggest_margin(target_tenant_id))
            and not a.is_ringer
        group by m.match_id, m.match_date, m.team_a_score, m.team_b_score
    ),
    top_victory as (
        select
            jsonb_agg(
                jsonb_build_object(
                    'team_a_score', team_a_score,
                    'team_b_score', team_b_score,
                    'team_a_players', team_a_players,
                    'team_b_players', team_b_players,
                    'date', match_date
                )
                order by match_date desc, match_id
            ) as entries
        from victory
    )
    insert into public.aggregated_records as stored (tenant_id, records)
    select
        target_tenant_id,
        jsonb_build_object(
            'most_goals_in_game', coalesce((select entries from top_score), '[]'),
            'biggest_victory', coalesce((select entries from top_victory), '[]'),
            'consecutive_goals_streak',
            coalesce((select holders from holder_list where metric = 'scoring'), '[]'),
            'streaks',
            coalesce(
                (
                    select jsonb_object_agg(kind.name, jsonb_build_object('holders', holder_list.holders))
                    from holder_list
                    inner join (
                        values
                        ('win', 'Win Streak'),
                        ('losing', 'Losing Streak'),
                        ('undefeated', 'Undefeated Streak'),
                        ('winless', 'Winless Streak')
                    ) as kind (metric, name) on kind.metric = holder_list.metric
                ),
                '{}'
            ),
            'attendance_streak',
            coalesce((select holders from holder_list where metric = 'attendance'), '[]')
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
