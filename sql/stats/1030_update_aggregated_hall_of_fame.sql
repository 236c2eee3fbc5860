-- The top of three career categories, ranked from the same totals that all-time stats store, not from that table.
-- The id is the only stored hint of rank, so rows are never updated in place: unless the stored rows are the fresh ones
-- in the fresh order, all of them are written anew.
create or replace function public.update_aggregated_hall_of_fame(
    target_tenant_id uuid default '00000000-0000-0000-0000-000000000001'
)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    settings jsonb;
    places integer;
    min_games integer;
    fresh jsonb;
    stored jsonb;
begin
    perform stats_pipeline.lock_refresh('update_aggregated_hall_of_fame', target_tenant_id);
    perform stats_pipeline.tell_odd_rows(target_tenant_id);

    settings := stats_pipeline.settings(target_tenant_id);
    places := coalesce((settings ->> 'hall_of_fame_limit')::integer, 3);
    min_games := coalesce((settings ->> 'games_required_for_hof')::integer, 50);

    select
        jsonb_agg(
            jsonb_build_object(
                'category', ranked.category,
                'player_id', ranked.player_id,
                'value', ranked.value,
                'name', ranked.name,
                'selected_club', ranked.selected_club
            )
            order by ranked.category_no, ranked.place
        )
    into fresh
    from (
        select
            entry.*,
            career.player_id,
            career.name,
            career.selected_club,
            row_number() over (
                partition by entry.category_no order by entry.value desc, career.name, career.player_id
            ) as place
        from stats_pipeline.career_totals(target_tenant_id) as career
        cross join lateral (
            values
            (1, 'most_goals', career.goals::numeric, true),
            (2, 'best_win_percentage', career.win_percentage, career.games_played >= min_games),
            (3, 'most_fantasy_points', career.fantasy_points::numeric, true)
        ) as entry (category_no, category, value, is_eligible)
        where entry.is_eligible and entry.value > 0
    ) as ranked
    where ranked.place <= places;

    select
        jsonb_agg(
            jsonb_build_object(
                'category', entry.category,
                'player_id', entry.player_id,
                'value', entry.value,
                'name', entry.name,
                'selected_club', entry.selected_club
            )
            order by entry.id
        )
    into stored
    from public.aggregated_hall_of_fame as entry
    where entry.tenant_id = target_tenant_id;

    if fresh is distinct from stored then
        delete from public.aggregated_hall_of_fame as entry
        where entry.tenant_id = target_tenant_id;

        insert into public.aggregated_hall_of_fame (tenant_id, category, player_id, value, name, selected_club)
        select
            target_tenant_id,
            entry.document ->> 'category',
            (entry.document ->> 'player_id')::integer,
            (entry.document ->> 'value')::numeric,
            entry.document ->> 'name',
            nullif(entry.document -> 'selected_club', 'null')
        from jsonb_array_elements(fresh) with ordinality as entry (document, place)
        order by entry.place;
    end if;

    perform stats_pipeline.stamp_cache(target_tenant_id, 'hall_of_fame', 'match_result');
end;
$$;

revoke all on function public.update_aggregated_hall_of_fame(uuid) from public, anon, authenticated;
grant execute on function public.update_aggregated_hall_of_fame(uuid) to service_role;
