-- One row per appearance of a regular, in match order, with the length of each streak up to and including it (0 when the
-- appearance breaks it). The longest streak is the maximum of a column, the current one its value at the last row, and
-- a streak of length l that ends at appearance_no n began at appearance_no n - l + 1.
-- A streak's length is the distance to the last appearance that broke it, so six streaks cost one sort and no self-join;
-- attendance is broken where the club's own match numbers jump. Inlined like appearances, hence no `set search_path`;
-- both windows are ordered by match_no so that the planner sorts once.
create or replace function stats_pipeline.running_streaks(target_tenant_id uuid)
returns table (
    player_id integer,
    match_id integer,
    match_date date,
    goals integer,
    appearance_no integer,
    is_last boolean,
    win integer,
    losing integer,
    undefeated integer,
    winless integer,
    scoring integer,
    attendance integer
)
language sql
stable
as $$
    with ordered_matches as (
        select
            m.match_id,
            m.match_date,
            row_number() over (order by m.match_date, m.match_id)::integer as match_no
        from public.matches as m
        where m.tenant_id = target_tenant_id
    ),
    numbered as (
        select
            pm.player_id,
            m.match_id,
            m.match_date,
            m.match_no,
            pm.result,
            coalesce(pm.goals, 0) as goals,
            row_number() over own::integer as appearance_no,
            lag(m.match_no, 1, -1) over own + 1 = m.match_no as attended_previous,
            lead(false, 1, true) over own as is_last
        from public.player_matches as pm
        inner join ordered_matches as m on m.match_id = pm.match_id
        inner join public.players as p on p.player_id = pm.player_id and p.tenant_id = pm.tenant_id
        where pm.tenant_id = target_tenant_id and not p.is_ringer
        window own as (partition by pm.player_id order by m.match_no)
    )
    select
        player_id,
        match_id,
        match_date,
        goals,
        appearance_no,
        is_last,
        appearance_no - coalesce(max(appearance_no) filter (where result is distinct from 'win') over own, 0),
        appearance_no - coalesce(max(appearance_no) filter (where result is distinct from 'loss') over own, 0),
        appearance_no
        - coalesce(max(appearance_no) filter (where (result in ('win', 'draw')) is not true) over own, 0),
        appearance_no
        - coalesce(max(appearance_no) filter (where (result in ('draw', 'loss')) is not true) over own, 0),
        appearance_no - coalesce(max(appearance_no) filter (where goals = 0) over own, 0),
        appearance_no + 1 - max(appearance_no) filter (where not attended_previous) over own
    from numbered
    window own as (partition by player_id order by match_no rows unbounded preceding);
$$;

revoke all on function stats_pipeline.running_streaks(uuid) from public, anon, authenticated;
grant execute on function stats_pipeline.running_streaks(uuid) to service_role;
