-- Exponentially weighted ratings, shrunk towards the club's mean, for balancing teams. Depends on the day of the run.
-- Weights are whole numbers (1e12 = a match of today): integer sums do not depend on the order of the rows, as sums of
-- floating-point weights would in their last digits, and with them ties between players.
create or replace function public.update_power_ratings(
    target_tenant_id uuid default '00000000-0000-0000-0000-000000000001'
)
returns void
language plpgsql
set search_path = ''
set jit = off
as $$
declare
    prior_weight numeric := stats_pipeline.platform_setting('prior_weight')::numeric;
    min_played numeric := coalesce(
        stats_pipeline.setting(target_tenant_id, 'performance_qualification_threshold')::numeric, 5
    );
    half_life numeric := coalesce(stats_pipeline.setting(target_tenant_id, 'performance_half_life_days')::numeric, 730);
    today date := stats_pipeline.stats_today();
begin
    if half_life <= 0 then
        half_life := 730;
    end if;
    perform stats_pipeline.lock_refresh('update_power_ratings', target_tenant_id);

    with weighted_match as materialized (
        select
            m.match_id,
            m.match_date,
            -- below 2^-100 a weight is 0, and exp() itself fails further down
            (1e12 * exp(greatest((m.match_date - today) / half_life, -100)::float8 * ln(2::float8)))::bigint as weight
        from public.matches as m
        where m.tenant_id = target_tenant_id and m.match_date <= today
    ),
    available as materialized (
        select match_date, sum(sum(weight)) over (order by match_date desc) / 1e12 as weight
        from weighted_match
        group by match_date
    ),
    played as (
        select
            a.player_id,
            min(a.match_date) as first_match_date,
            sum(m.weight) / 1e12 as weight,
            sum(m.weight * a.points) / 1e12 as points,
            sum(m.weight * a.goals) / 1e12 as goals
        from stats_pipeline.appearances(target_tenant_id) as a
        inner join weighted_match as m on m.match_id = a.match_id
        group by a.player_id
    ),
    player as materialized (
        select
            p.*,
            played.first_match_date,
            coalesce(played.weight, 0) as played,
            coalesce(available.weight, (select max(weight) from available)) as available,
            coalesce(played.points, 0) as points,
            coalesce(played.goals, 0) as goals
        from public.players as p
        left join played on played.player_id = p.player_id
        left join available on available.match_date = played.first_match_date
        where p.tenant_id = target_tenant_id
            and p.is_retired is not true
            and exists (select from weighted_match)
    ),
    pool as (
        select
            case when bool_or(is_steady) then sum(points) filter (where is_steady) else sum(points) end as points,
            case when bool_or(is_steady) then sum(goals) filter (where is_steady) else sum(goals) end as goals,
            case when bool_or(is_steady) then sum(played) filter (where is_steady) else sum(played) end as played
        from (
            select player.*, player.played >= 0.6 * min_played as is_steady
            from player
            where not player.is_ringer and player.played > 0
        ) as regular
    ),
    rated as (
        select
            player.*,
            (player.points + prior_weight * coalesce(pool.points / pool.played, 0))
            / (player.played + prior_weight) as power,
            (player.goals + prior_weight * coalesce(pool.goals / pool.played, 0))
            / (player.played + prior_weight) as threat,
            coalesce(100 * player.played / nullif(player.available, 0), 0) as participation,
            player.played >= min_played as is_qualified
        from player
        cross join pool
    ),
    ranked as (
        select
            rated.*,
            count(*) over qualified - 1 as others,
            rank() over (qualified order by power) - 1 as power_below,
            rank() over (qualified order by threat) - 1 as threat_below,
            rank() over (qualified order by participation) - 1 as participation_below,
            min(power) over qualified < max(power) over qualified as power_differs,
            min(threat) over qualified < max(threat) over qualified as threat_differs,
            min(participation) over qualified < max(participation) over qualified as participation_differs
        from rated
        window qualified as (partition by is_qualified)
    ),
    fresh as materialized (
        select
            player_id,
            tenant_id,
            round(power, 3) as power_rating,
            round(threat, 3) as goal_threat,
            round(participation, 1) as participation,
            round(played, 3) as weighted_played,
            round(available, 3) as weighted_available,
            is_qualified,
            case
                when is_qualified and power_differs then round(100.0 * power_below / others, 1) else 50
            end as power_percentile,
            case
                when is_qualified and threat_differs then round(100.0 * threat_below / others, 1) else 50
            end as goal_percentile,
            case
                when is_qualified and participation_differs then round(100.0 * participation_below / others, 1) else 50
            end as participation_percentile,
            coalesce(first_match_date, '1900-01-01') as first_match_date,
            name,
            is_retired,
            is_ringer,
            selected_club
        from ranked
    ),
    stale as (
        delete from public.aggregated_performance_ratings as stored
        where stored.tenant_id = target_tenant_id
            and exists (select from weighted_match)
            and not exists (select from fresh where fresh.player_id = stored.player_id)
    )
    insert into public.aggregated_performance_ratings (
        player_id, tenant_id, power_rating, goal_threat, participation, weighted_played, weighted_available,
        is_qualified, power_percentile, goal_percentile, participation_percentile, first_match_date, name, is_retired,
        is_ringer, selected_club
    )
    select * from fresh
    except
    select
        player_id, tenant_id, power_rating, goal_threat, participation, weighted_played, weighted_available,
        is_qualified, power_percentile, goal_percentile, participation_percentile, first_match_date, name, is_retired,
        is_ringer, selected_club
    from public.aggregated_performance_ratings
    where tenant_id = target_tenant_id
    on conflict (player_id) do update set
        tenant_id = excluded.tenant_id,
        power_rating = excluded.power_rating,
        goal_threat = excluded.goal_threat,
        participation = excluded.participation,
        weighted_played = excluded.weighted_played,
        weighted_available = excluded.weighted_available,
        is_qualified = excluded.is_qualified,
        power_percentile = excluded.power_percentile,
        goal_percentile = excluded.goal_percentile,
        participation_percentile = excluded.participation_percentile,
        first_match_date = excluded.first_match_date,
        name = excluded.name,
        is_retired = excluded.is_retired,
        is_ringer = excluded.is_ringer,
        selected_club = excluded.selected_club,
        updated_at = excluded.updated_at;

    perform stats_pipeline.stamp_cache(target_tenant_id, 'player_power_rating', 'function_execution', relabel => true);
end;
$$;

revoke all on function public.update_power_ratings(uuid) from public, anon, authenticated;
grant execute on function public.update_power_ratings(uuid) to service_role;
