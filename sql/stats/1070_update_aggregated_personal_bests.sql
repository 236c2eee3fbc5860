-- The personal bests set in the latest match. The row of that match is written; rows of earlier matches stay as they
-- were when those matches were the latest.
create or replace function public.update_aggregated_personal_bests(
    target_tenant_id uuid default '00000000-0000-0000-0000-000000000001'
)
returns void
language plpgsql
set search_path = ''
set jit = off
as $$
declare
    min_goals integer := stats_pipeline.platform_setting('min_goals_for_pb')::integer;
    min_streak integer := stats_pipeline.platform_setting('min_streak_for_pb')::integer;
begin
    perform stats_pipeline.lock_refresh('update_aggregated_personal_bests', target_tenant_id);

    with latest as materialized (
        select m.match_id
        from public.matches as m
        where m.tenant_id = target_tenant_id
        order by m.match_date desc, m.match_id desc
        limit 1
    ),
    streak as materialized (
        select running.*, running.match_id = (select latest.match_id from latest) as is_latest
        from stats_pipeline.running_streaks(target_tenant_id) as running
        where running.player_id = any(
            array(
                select pm.player_id
                from public.player_matches as pm
                where pm.match_id = (select latest.match_id from latest)
            )
        )
    ),
    before as (
        select
            player_id,
            max(goals) as goals,
            max(win) as win,
            max(undefeated) as undefeated,
            max(losing) as losing,
            max(winless) as winless,
            max(attendance) as attendance,
            max(scoring) as scoring
        from streak
        where not is_latest
        group by player_id
    ),
    best as (
        select
            streak.player_id,
            jsonb_agg(
                jsonb_build_object(
                    'metric_type', metric.name,
                    'value', metric.value,
                    'previous_best_value', coalesce(metric.previous, 0)
                )
                order by metric.position
            ) as entries
        from streak
        left join before on before.player_id = streak.player_id
        cross join lateral (
            values
            (1, 'most_goals_in_game', streak.goals, before.goals, min_goals),
            (2, 'longest_win_streak', streak.win, before.win, min_streak),
            (3, 'longest_undefeated_streak', streak.undefeated, before.undefeated, min_streak),
            (4, 'longest_losing_streak', streak.losing, before.losing, min_streak),
            (5, 'longest_winless_streak', streak.winless, before.winless, min_streak),
            (6, 'attendance_streak', streak.attendance, before.attendance, min_streak),
            (7, 'longest_scoring_streak', streak.scoring, before.scoring, min_streak)
        ) as metric (position, name, value, previous, minimum)
        where streak.is_latest
            and metric.value >= metric.minimum
            and metric.value > coalesce(metric.previous, 0)
        group by streak.player_id
    ),
    document as (
        select
            coalesce(
                jsonb_object_agg(best.player_id::text, jsonb_build_object('name', p.name, 'pbs', best.entries)), '{}'
            ) as content
        from best
        inner join public.players as p on p.player_id = best.player_id
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

    if exists (select from public.matches as m where m.tenant_id = target_tenant_id) then
        perform stats_pipeline.stamp_cache(target_tenant_id, 'personal_bests', 'personal_bests', relabel => true);
    end if;
end;
$$;

revoke all on function public.update_aggregated_personal_bests(uuid) from public, anon, authenticated;
grant execute on function public.update_aggregated_personal_bests(uuid) to service_role;
