-- Career totals of every regular with at least games_required_for_hof games (0 unless set): what all-time stats store
-- and the hall of fame ranks. Shared, so that neither has to read the other's table. Inlined, hence no
-- `set search_path`.
create or replace function stats_pipeline.career_totals(target_tenant_id uuid)
returns table (
    player_id integer,
    games_played integer,
    wins integer,
    draws integer,
    losses integer,
    goals integer,
    heavy_wins integer,
    heavy_losses integer,
    clean_sheets integer,
    fantasy_points integer,
    win_percentage numeric,
    name text,
    is_retired boolean,
    selected_club jsonb
)
language sql
stable
as $$
    select
        total.*,
        round(100.0 * total.wins / total.games_played, 1),
        p.name,
        p.is_retired,
        p.selected_club
    from (
        select
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
        from stats_pipeline.appearances(target_tenant_id) as a
        where not a.is_ringer
        group by a.player_id
    ) as total
    inner join stats_pipeline.squad(target_tenant_id) as p on p.player_id = total.player_id
    where total.games_played
        >= coalesce((stats_pipeline.settings(target_tenant_id) ->> 'games_required_for_hof')::integer, 0);
$$;

revoke all on function stats_pipeline.career_totals(uuid) from public, anon, authenticated;
grant execute on function stats_pipeline.career_totals(uuid) to service_role;
