-- A tenant's fantasy-point settings as one typed row, missing totals derived from the tenant's own win, draw and loss
-- values. Totals per kind of result; goal and attendance are added on top.
create or replace function stats_pipeline.point_rules(target_tenant_id uuid)
returns table (
    win integer,
    heavy_win integer,
    clean_sheet_win integer,
    heavy_clean_sheet_win integer,
    draw integer,
    clean_sheet_draw integer,
    loss integer,
    heavy_loss integer,
    goal integer,
    attendance integer,
    heavy_threshold integer
)
language sql
stable
rows 1
set search_path = pg_catalog, pg_temp
as $$
    with base as (
        select
            value,
            coalesce((value ->> 'fantasy_win_points')::integer, 20) as win,
            coalesce((value ->> 'fantasy_draw_points')::integer, 10) as draw,
            coalesce((value ->> 'fantasy_loss_points')::integer, -10) as loss
        from stats_pipeline.settings(target_tenant_id) as value
    )
    select
        win,
        coalesce((value ->> 'fantasy_heavy_win_points')::integer, win + 10),
        coalesce((value ->> 'fantasy_clean_sheet_win_points')::integer, win + 10),
        coalesce((value ->> 'fantasy_heavy_clean_sheet_win_points')::integer, win + 20),
        draw,
        coalesce((value ->> 'fantasy_clean_sheet_draw_points')::integer, draw + 10),
        loss,
        coalesce((value ->> 'fantasy_heavy_loss_points')::integer, loss - 10),
        coalesce((value ->> 'fantasy_goals_scored_points')::integer, 0),
        coalesce((value ->> 'fantasy_attendance_points')::integer, 10),
        coalesce((value ->> 'fantasy_heavy_win_threshold')::integer, 4)
    from base;
$$;

revoke all on function stats_pipeline.point_rules(uuid) from public, anon, authenticated;
grant execute on function stats_pipeline.point_rules(uuid) to service_role;
