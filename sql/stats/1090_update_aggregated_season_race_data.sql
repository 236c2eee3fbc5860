-- Cumulative points curves of the five best players of the current season and of its current half. Rows of other years
-- are an archive and stay. Both rows of the season are always written, so none goes stale.
create or replace function public.update_aggregated_season_race_data(
    target_tenant_id uuid default '00000000-0000-0000-0000-000000000001'
)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    season record;
begin
    perform stats_pipeline.lock_refresh('update_aggregated_season_race_data', target_tenant_id);
    perform stats_pipeline.tell_odd_rows(target_tenant_id);

    select * into season
    from stats_pipeline.season_on(target_tenant_id, stats_pipeline.stats_today(target_tenant_id));
    if not found then
        return;
    end if;

    with period (type, first_day, last_day) as (
        values
        ('whole_season', season.start_date, season.end_date),
        ('current_half', season.half_start, season.half_end)
    ),
    game as materialized (
        select
            period.type,
            period.first_day,
            a.player_id,
            a.match_id,
            a.match_date,
            a.points
        from stats_pipeline.appearances(target_tenant_id) as a
        inner join period on a.match_date between period.first_day and period.last_day
        where not a.is_ringer and a.match_date between season.start_date and season.end_date
    ),
    finalist as (
        select ranked.*
        from (
            select
                game.type,
                game.first_day,
                game.player_id,
                p.name,
                row_number() over (
                    partition by game.type order by sum(game.points) desc, p.name, game.player_id
                ) as place
            from game
            inner join stats_pipeline.squad(target_tenant_id) as p on p.player_id = game.player_id
            group by game.type, game.first_day, game.player_id, p.name
            having sum(game.points) > 0
        ) as ranked
        where ranked.place <= 5
    ),
    curve as (
        select
            finalist.type,
            finalist.player_id,
            finalist.name,
            jsonb_build_object('date', finalist.first_day, 'points', 0)
            || jsonb_agg(
                jsonb_build_object('date', step.match_date, 'points', step.points)
                order by step.match_date, step.match_id
            ) as points
        from finalist
        inner join (
            select
                game.type,
                game.player_id,
                game.match_id,
                game.match_date,
                sum(game.points) over (
                    partition by game.type, game.player_id
                    order by game.match_date, game.match_id
                    rows unbounded preceding
                ) as points
            from game
        ) as step on step.type = finalist.type and step.player_id = finalist.player_id
        group by finalist.type, finalist.player_id, finalist.name, finalist.first_day
    ),
    fresh as (
        select
            target_tenant_id as tenant_id,
            date_part('year', season.start_date)::integer as season_year,
            period.type as period_type,
            coalesce(
                jsonb_agg(
                    jsonb_build_object(
                        'player_id', curve.player_id, 'name', curve.name, 'cumulative_data', curve.points
                    )
                    order by curve.player_id
                ) filter (where curve.player_id is not null),
                '[]'
            ) as player_data,
            season.id as season_id
        from period
        left join curve on curve.type = period.type
        group by period.type
    )
    insert into public.aggregated_season_race_data (tenant_id, season_year, period_type, player_data, season_id)
    select tenant_id, season_year, period_type, player_data, season_id
    from fresh
    except
    select tenant_id, season_year, period_type, player_data, season_id
    from public.aggregated_season_race_data
    where tenant_id = target_tenant_id
    on conflict (tenant_id, season_year, period_type) do update set
        player_data = excluded.player_data,
        season_id = excluded.season_id,
        last_updated = excluded.last_updated;

    perform stats_pipeline.stamp_cache(target_tenant_id, 'season_race_data', 'season_race_data');
end;
$$;

revoke all on function public.update_aggregated_season_race_data(uuid) from public, anon, authenticated;
grant execute on function public.update_aggregated_season_race_data(uuid) to service_role;
