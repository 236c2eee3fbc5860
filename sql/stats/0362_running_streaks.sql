-- One row per appearance of a career, with the length of each streak up to and including it (0 when the appearance
-- breaks it). A streak of length l that ends at appearance n began at appearance n - l + 1.
-- A length is the distance to the last appearance that broke the streak, so six streaks take one window and no sort;
-- attendance breaks where the club's match numbers jump. Inlined, hence no `set search_path`.
create or replace function stats_pipeline.running_streaks(games bigint[])
returns table (
    appearance_no bigint,
    is_last boolean,
    match_no integer,
    goals bigint,
    win bigint,
    losing bigint,
    undefeated bigint,
    winless bigint,
    scoring bigint,
    attendance bigint
)
language sql
immutable
as $$
    select
        appearance_no,
        appearance_no = cardinality(games),
        (game >> 32)::integer,
        stats_pipeline.game_goals(game),
        appearance_no - coalesce(max(appearance_no) filter (where game & 3 <> 3) over so_far, 0),
        appearance_no - coalesce(max(appearance_no) filter (where game & 3 <> 1) over so_far, 0),
        appearance_no - coalesce(max(appearance_no) filter (where game & 3 < 2) over so_far, 0),
        appearance_no - coalesce(max(appearance_no) filter (where game & 3 in (0, 3)) over so_far, 0),
        appearance_no - coalesce(max(appearance_no) filter (where stats_pipeline.game_goals(game) <= 0) over so_far, 0),
        appearance_no + 1
        - max(appearance_no) filter (
            where games[appearance_no - 1] >> 32 is distinct from (game >> 32) - 1
        ) over so_far
    from unnest(games) with ordinality as played (game, appearance_no)
    window so_far as (order by appearance_no rows unbounded preceding);
$$;

revoke all on function stats_pipeline.running_streaks(bigint[]) from public, anon, authenticated;
grant execute on function stats_pipeline.running_streaks(bigint[]) to service_role;
