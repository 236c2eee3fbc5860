-- Totals of every regular for the current half season and for each season. Both tables come from one grouping over the
-- periods: the seasons, and the current half as one more period.
create or replace function public.update_half_and_full_season_stats(
    target_tenant_id uuid default '00000000-0000-0000-0000-000000000001'
)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
begin
    perform stats_pipeline.lock_refresh('update_half_and_full_season_stats', target_tenant_id);
    perform stats_pipeline.tell_odd_rows(target_tenant_id);

    with period as (
        select distinct s.start_date, s.end_date, false as is_half
        from public.seasons as s
        where s.tenant_id = target_tenant_id and isfinite(s.start_date)
        union all
        select current_season.half_start, current_season.half_end, true
        from stats_pipeline.season_on(target_tenant_id, stats_pipeline.stats_today(target_tenant_id)) as current_season
    ),
    total as (
        select
            period.is_half,
            period.start_date,
            period.end_date,
            a.player_id,
            count(*)::integer as games_played,
            count(*) filter (where a.result = 'win')::integer as wins,
            count(*) filter (where a.result = 'draw')::integer as draws,
            count(*) filter (where a.result = 'loss')::integer as losses,
            sum(a.goals)::integer as goals,
            count(*) filter (where a.heavy_win)::integer as heavy_wins,
            count(*) filter (where a.heavy_loss)::integer as heavy_losses,
            count(*) filter (where a.clean_sheet)::integer as clean_sheets,
            sum(a.points)::integer as fantasy_points
        from period
        inner join stats_pipeline.appearances(target_tenant_id) as a
            on a.match_date between period.start_date and period.end_date
        where not a.is_ringer
        group by period.is_half, period.start_date, period.end_date, a.player_id
    ),
    fresh as materialized (
        select
            total.*,
            round(100.0 * total.wins / total.games_played, 1) as win_percentage,
            round(total.fantasy_points::numeric / total.games_played, 1) as points_per_game,
            p.name,
            p.selected_club
        from total
        inner join stats_pipeline.squad(target_tenant_id) as p on p.player_id = total.player_id
    ),
    stale_half as (
        delete from public.aggregated_half_season_stats as stored
        where stored.tenant_id = target_tenant_id
            and not exists (select from fresh where fresh.is_half and fresh.player_id = stored.player_id)
    ),
    stale_season as (
        delete from public.aggregated_season_stats as stored
        where stored.tenant_id = target_tenant_id
            and not exists (
                select from fresh
                where not fresh.is_half
                    and fresh.player_id = stored.player_id
                    and fresh.start_date = stored.season_start_date
                    and fresh.end_date = stored.season_end_date
            )
    ),
    changed_half as (
        insert into public.aggregated_half_season_stats (
            tenant_id, player_id, games_played, wins, draws, losses, goals, heavy_wins, heavy_losses, clean_sheets,
            win_percentage, fantasy_points, points_per_game, name, selected_club
        )
        select
            target_tenant_id, player_id, games_played, wins, draws, losses, goals, heavy_wins, heavy_losses,
            clean_sheets, win_percentage, fantasy_points, points_per_game, name, selected_club
        from fresh
        where is_half
        except
        select
            tenant_id, player_id, games_played, wins, draws, losses, goals, heavy_wins, heavy_losses,
            clean_sheets, win_percentage, fantasy_points, points_per_game, name, selected_club
        from public.aggregated_half_season_stats
        where tenant_id = target_tenant_id
        on conflict (tenant_id, player_id) do update set
            games_played = excluded.games_played,
            wins = excluded.wins,
            draws = excluded.draws,
            losses = excluded.losses,
            goals = excluded.goals,
            heavy_wins = excluded.heavy_wins,
            heavy_losses = excluded.heavy_losses,
            clean_sheets = excluded.clean_sheets,
            win_percentage = excluded.win_percentage,
            fantasy_points = excluded.fantasy_points,
            points_per_game = excluded.points_per_game,
            name = excluded.name,
            selected_club = excluded.selected_club,
            last_updated = excluded.last_updated
    )
    insert into public.aggregated_season_stats (
        tenant_id, player_id, season_start_date, season_end_date, games_played, wins, draws, losses, goals, heavy_wins,
        heavy_losses, clean_sheets, win_percentage, fantasy_points, points_per_game, name, selected_club
    )
    select
        target_tenant_id, player_id, start_date, end_date, games_played, wins, draws, losses, goals, heavy_wins,
        heavy_losses, clean_sheets, win_percentage, fantasy_points, points_per_game, name, selected_club
    from fresh
    where not is_half
    except
    select
        tenant_id, player_id, season_start_date, season_end_date, games_played, wins, draws, losses, goals, heavy_wins,
        heavy_losses, clean_sheets, win_percentage, fantasy_points, points_per_game, name, selected_club
    from public.aggregated_season_stats
    where tenant_id = target_tenant_id
    on conflict (tenant_id, player_id, season_start_date, season_end_date) do update set
        games_played = excluded.games_played,
        wins = excluded.wins,
        draws = excluded.draws,
        losses = excluded.losses,
        goals = excluded.goals,
        heavy_wins = excluded.heavy_wins,
        heavy_losses = excluded.heavy_losses,
        clean_sheets = excluded.clean_sheets,
        win_percentage = excluded.win_percentage,
        fantasy_points = excluded.fantasy_points,
        points_per_game = excluded.points_per_game,
        name = excluded.name,
        selected_club = excluded.selected_club,
        last_updated = excluded.last_updated;

    perform stats_pipeline.stamp_cache(target_tenant_id, 'season_stats', 'season_stats');
    perform stats_pipeline.stamp_cache(target_tenant_id, 'half_season_stats', 'half_season_stats');
end;
$$;

revoke all on function public.update_half_and_full_season_stats(uuid) from public, anon, authenticated;
grant execute on function public.update_half_and_full_season_stats(uuid) to service_role;
