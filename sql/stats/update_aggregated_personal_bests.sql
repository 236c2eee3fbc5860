create table if not exists public.aggregated_personal_bests (
    match_id integer primary key references public.matches (match_id) on delete cascade,
    tenant_id uuid not null,
    broken_pbs_data jsonb not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    unique (match_id, tenant_id)
);

alter table public.aggregated_personal_bests enable row level security;
revoke all on public.aggregated_personal_bests from public, anon, authenticated;
grant select, insert, update, delete on public.aggregated_personal_bests to service_role;

-- The personal bests set in the latest match played. The row of that match is written; rows of earlier matches stay as
-- they were when those matches were the latest.
create or replace function public.update_aggregated_personal_bests(
    target_tenant_id uuid default '00000000-0000-0000-0000-000000000001'
)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    min_goals integer;
    min_streak integer;
begin
    perform stats_pipeline.lock_refresh('update_aggregated_personal_bests', target_tenant_id);
    perform stats_pipeline.tell_odd_rows(target_tenant_id);

    min_goals := stats_pipeline.platform_setting('min_goals_for_pb')::integer;
    min_streak := stats_pipeline.platform_setting('min_streak_for_pb')::integer;

    with latest as materialized (
        select m.match_id
        from stats_pipeline.played_matches(target_tenant_id) as m
        order by m.match_date desc, m.match_id desc
        limit 1
    ),
    best as (
        select
            career.player_id,
            jsonb_agg(
                jsonb_build_object(
                    'metric_type', metric.name,
                    'value', reached.current_value,
                    'previous_best_value', reached.previous_best
                )
                order by metric.position
            ) as entries
        from stats_pipeline.careers(target_tenant_id) as career
        cross join lateral stats_pipeline.career_bests(career.games) as reached
        inner join (
            values
            (1, 'goals', 'most_goals_in_game', min_goals),
            (2, 'win', 'longest_win_streak', min_streak),
            (3, 'undefeated', 'longest_undefeated_streak', min_streak),
            (4, 'losing', 'longest_losing_streak', min_streak),
            (5, 'winless', 'longest_winless_streak', min_streak),
            (6, 'attendance', 'attendance_streak', min_streak),
            (7, 'scoring', 'longest_scoring_streak', min_streak)
        ) as metric (position, metric, name, minimum) on metric.metric = reached.metric
        where career.player_id = any(
                array(
                    select pm.player_id
                    from public.player_matches as pm
                    where pm.match_id = (select latest.match_id from latest)
                )
            )
            and reached.current_value >= metric.minimum
            and reached.current_value > reached.previous_best
        group by career.player_id
    ),
    document as (
        select
            coalesce(
                jsonb_object_agg(best.player_id::text, jsonb_build_object('name', p.name, 'pbs', best.entries)), '{}'
            ) as content
        from best
        inner join stats_pipeline.squad(target_tenant_id) as p on p.player_id = best.player_id
    )
    insert into public.aggregated_personal_bests as stored (match_id, tenant_id, broken_pbs_data)
    select latest.match_id, target_tenant_id, document.content
    from latest
    cross join document
    on conflict (match_id) do update set
        tenant_id = excluded.tenant_id,
        broken_pbs_data = excluded.broken_pbs_data,
        updated_at = excluded.updated_at
    where stored.broken_pbs_data is distinct from excluded.broken_pbs_data;

    if exists (select from stats_pipeline.played_matches(target_tenant_id)) then
        perform stats_pipeline.stamp_cache(target_tenant_id, 'personal_bests', 'personal_bests', relabel => true);
    end if;
end;
$$;

revoke all on function public.update_aggregated_personal_bests(uuid) from public, anon, authenticated;
grant execute on function public.update_aggregated_personal_bests(uuid) to service_role;
