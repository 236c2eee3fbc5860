-- Career totals of every regular with enough games.
create or replace function public.update_aggregated_all_time_stats(
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
    perform stats_pipeline.lock_refresh('update_aggregated_all_time_stats', target_tenant_id);
    perform stats_pipeline.tell_odd_rows(target_tenant_id);

    settings := stats_pipeline.settings(target_tenant_id);
    match_minutes := coalesce((settings ->> 'match_duration_minutes')::integer, 60);

    with fresh as materialized (
        select
            target_tenant_id as tenant_id,
            career.*,
            case
                when career.goals > 0 then round(career.games_played::numeric * match_minutes / career.goals, 1)
            end as minutes_per_goal,
            round(100.0 * career.heavy_wins / career.games_played, 1) as heavy_win_percentage,
            round(100.0 * career.heavy_losses / career.games_played, 1) as heavy_loss_percentage,
            round(100.0 * career.clean_sheets / career.games_played, 1) as clean_sheet_percentage,
            round(career.fantasy_points::numeric / career.games_played, 1) as points_per_game
        from stats_pipeline.career_totals(target_tenant_id) as career
    ),
    stale as (
        delete from public.aggregated_all_time_stats as stored
        where stored.tenant_id = target_tenant_id
            and not exists (select from fresh where fresh.player_id = stored.player_id)
    )
    insert into public.aggregated_all_time_stats (
        tenant_id, player_id, games_played, wins, draws, losses, goals, win_percentage, minutes_per_goal, heavy_wins,
        heavy_win_percentage, heavy_losses, heavy_loss_percentage, clean_sheets, clean_sheet_percentage, fantasy_points,
        points_per_game, name, is_retired, selected_club
    )
    select
        tenant_id, player_id, games_played, wins, draws, losses, goals, win_percentage, minutes_per_goal, heavy_wins,
        heavy_win_percentage, heavy_losses, heavy_loss_percentage, clean_sheets, clean_sheet_percentage, fantasy_points,
        points_per_game, name, is_retired, selected_club
    from fresh
    except
    select
        tenant_id, player_id, games_played, wins, draws, losses, goals, win_percentage, minutes_per_goal, heavy_wins,
        heavy_win_percentage, heavy_losses, heavy_loss_percentage, clean_sheets, clean_sheet_percentage, fantasy_points,
        points_per_game, name, is_retired, selected_club
    from public.aggregated_all_time_stats
    where tenant_id = target_tenant_id
    on conflict (tenant_id, player_id) do update set
        games_played = excluded.games_played,
        wins = excluded.wins,
        draws = excluded.draws,
        losses = excluded.losses,
        goals = excluded.goals,
        win_percentage = excluded.win_percentage,
        minutes_per_goal = excluded.minutes_per_goal,
        heavy_wins = excluded.heavy_wins,
        heavy_win_percentage = excluded.heavy_win_percentage,
        heavy_losses = excluded.heavy_losses,
        heavy_loss_percentage = excluded.heavy_loss_percentage,
        clean_sheets = excluded.clean_sheets,
        clean_sheet_percentage = excluded.clean_sheet_percentage,
        fantasy_points = excluded.fantasy_points,
        points_per_game = excluded.points_per_game,
        name = excluded.name,
        is_retired = excluded.is_retired,
        selected_club = excluded.selected_club,
        last_updated = excluded.last_updated;

    perform stats_pipeline.stamp_cache(target_tenant_id, 'all_time_stats', 'match_result');
end;
$$;

revoke all on function public.update_aggregated_all_time_stats(uuid) from public, anon, authenticated;
grant execute on function public.update_aggregated_all_time_stats(uuid) to service_role;
