create table if not exists public.aggregated_performance_ratings (
    player_id integer primary key,
    tenant_id uuid not null,
    power_rating numeric(10, 3) not null,
    goal_threat numeric(10, 3) not null,
    participation numeric(5, 1) not null,
    weighted_played numeric(10, 3) not null,
    weighted_available numeric(10, 3) not null,
    is_qualified boolean not null,
    power_percentile numeric(5, 1) default 50,
    goal_percentile numeric(5, 1) default 50,
    participation_percentile numeric(5, 1) default 50,
    first_match_date date,
    name varchar(14),
    is_retired boolean,
    is_ringer boolean,
    selected_club jsonb,
    updated_at timestamptz default now()
);

create index if not exists aggregated_performance_ratings_tenant_idx
on public.aggregated_performance_ratings (tenant_id);

alter table public.aggregated_performance_ratings enable row level security;
revoke all on public.aggregated_performance_ratings from public, anon, authenticated;
grant select, insert, update, delete on public.aggregated_performance_ratings to service_role;

-- Exponentially weighted ratings, shrunk towards the club's mean, for balancing teams. Depends on the day of the run.
-- Weights are decimals of 15 significant digits: decimal sums do not depend on the order of the rows, as floating-point
-- sums would in their last digits. Ranks compare nine decimals, so that ratings which are equal on paper tie although
-- their divisions ended at different digits.
create or replace function public.update_power_ratings(
    target_tenant_id uuid default '00000000-0000-0000-0000-000000000001'
)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    settings jsonb;
    prior_weight numeric;
    min_played numeric;
    half_life numeric;
    today date;
begin
    perform stats_pipeline.lock_refresh('update_power_ratings', target_tenant_id);
    perform stats_pipeline.tell_odd_rows(target_tenant_id);

    settings := stats_pipeline.settings(target_tenant_id);
    prior_weight := stats_pipeline.platform_setting('prior_weight')::numeric;
    min_played := coalesce((settings ->> 'performance_qualification_threshold')::numeric, 5);
    half_life := coalesce((settings ->> 'performance_half_life_days')::numeric, 730);
    today := stats_pipeline.stats_today(target_tenant_id);
    if half_life <= 0 then
        half_life := 730;
    end if;

    with weighted_match as materialized (
        select
            m.match_id,
            m.match_date,
            -- exp() fails below 2^-1022
            exp(ln(2::float8) * greatest((m.match_date - today) / half_life, -1000)::float8)::numeric as weight
        from stats_pipeline.played_matches(target_tenant_id) as m
    ),
    available as materialized (
        select match_date, sum(sum(weight)) over (order by match_date desc) as weight
        from weighted_match
        group by match_date
    ),
    played as (
        select
            a.player_id,
            min(a.match_date) as first_match_date,
            sum(m.weight) as weight,
            sum(m.weight * a.points) as points,
            sum(m.weight * a.goals) as goals
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
        from stats_pipeline.squad(target_tenant_id) as p
        left join played on played.player_id = p.player_id
        left join available on available.match_date = played.first_match_date
        where p.is_retired is not true and exists (select from weighted_match)
    ),
    mean as (
        select
            coalesce(sum(points) / sum(played), 0) as points,
            coalesce(sum(goals) / sum(played), 0) as goals
        from (
            select
                player.*,
                player.played >= 0.6 * min_played as is_steady,
                bool_or(player.played >= 0.6 * min_played) over () as any_steady
            from player
            where not player.is_ringer and player.played > 0
        ) as regular
        where is_steady or not any_steady
    ),
    rated as (
        select
            player.*,
            coalesce(
                (player.points + prior_weight * mean.points) / nullif(player.played + prior_weight, 0), mean.points
            ) as power,
            coalesce(
                (player.goals + prior_weight * mean.goals) / nullif(player.played + prior_weight, 0), mean.goals
            ) as threat,
            coalesce(100 * player.played / nullif(player.available, 0), 0) as participation,
            player.played >= min_played as is_qualified
        from player
        cross join mean
    ),
    ranked as (
        select
            rated.*,
            count(*) over qualified - 1 as others,
            rank() over (qualified order by round(power, 9)) - 1 as power_below,
            rank() over (qualified order by round(threat, 9)) - 1 as threat_below,
            rank() over (qualified order by round(participation, 9)) - 1 as participation_below
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
                when is_qualified and max(power_below) over qualified > 0
                    then round(100.0 * power_below / others, 1)
                else 50
            end as power_percentile,
            case
                when is_qualified and max(threat_below) over qualified > 0
                    then round(100.0 * threat_below / others, 1)
                else 50
            end as goal_percentile,
            case
                when is_qualified and max(participation_below) over qualified > 0
                    then round(100.0 * participation_below / others, 1)
                else 50
            end as participation_percentile,
            coalesce(first_match_date, '1900-01-01') as first_match_date,
            name,
            is_retired,
            is_ringer,
            selected_club
        from ranked
        window qualified as (partition by is_qualified)
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
