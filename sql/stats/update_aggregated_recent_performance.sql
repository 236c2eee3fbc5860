create table if not exists public.aggregated_recent_performance (
    player_id integer primary key,
    tenant_id uuid not null,
    last_5_games jsonb,
    last_5_goals integer,
    last_updated timestamptz default now()
);

create index if not exists aggregated_recent_performance_tenant_idx
on public.aggregated_recent_performance (tenant_id);

alter table public.aggregated_recent_performance enable row level security;
revoke all on public.aggregated_recent_performance from public, anon, authenticated;
grant select, insert, update, delete on public.aggregated_recent_performance to service_role;

-- The last five games of every regular, newest first; players without a game get an empty list.
-- The clean sheet shown here is read off the score, not off the stored flag.
create or replace function public.update_aggregated_recent_performance(
    target_tenant_id uuid default '00000000-0000-0000-0000-000000000001'
)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
begin
    perform stats_pipeline.lock_refresh('update_aggregated_recent_performance', target_tenant_id);
    perform stats_pipeline.tell_odd_rows(target_tenant_id);

    with ranked as (
        select
            a.player_id,
            a.match_date,
            a.goals,
            a.result,
            a.own_score,
            a.opponent_score,
            row_number() over (partition by a.player_id order by a.match_date desc, a.match_id desc) as recency
        from stats_pipeline.appearances(target_tenant_id) as a
        where not a.is_ringer
    ),
    recent as (
        select
            player_id,
            jsonb_agg(
                jsonb_build_object(
                    'date', match_date,
                    'goals', goals,
                    'result', coalesce(result, ''),
                    'score', coalesce(own_score || '-' || opponent_score, ''),
                    'clean_sheet', coalesce(opponent_score = 0, false)
                )
                order by recency
            ) as games,
            sum(goals)::integer as goals
        from ranked
        where recency <= 5
        group by player_id
    ),
    fresh as materialized (
        select
            p.tenant_id,
            p.player_id,
            coalesce(recent.games, '[]') as last_5_games,
            coalesce(recent.goals, 0) as last_5_goals
        from stats_pipeline.squad(target_tenant_id) as p
        left join recent on recent.player_id = p.player_id
        where not p.is_ringer
    ),
    stale as (
        delete from public.aggregated_recent_performance as stored
        where stored.tenant_id = target_tenant_id
            and not exists (select from fresh where fresh.player_id = stored.player_id)
    )
    insert into public.aggregated_recent_performance (tenant_id, player_id, last_5_games, last_5_goals)
    select tenant_id, player_id, last_5_games, last_5_goals
    from fresh
    except
    select tenant_id, player_id, last_5_games, last_5_goals
    from public.aggregated_recent_performance
    where tenant_id = target_tenant_id
    on conflict (player_id) do update set
        tenant_id = excluded.tenant_id,
        last_5_games = excluded.last_5_games,
        last_5_goals = excluded.last_5_goals,
        last_updated = excluded.last_updated;

    perform stats_pipeline.stamp_cache(target_tenant_id, 'recent_performance', 'recent_performance');
end;
$$;

revoke all on function public.update_aggregated_recent_performance(uuid) from public, anon, authenticated;
grant execute on function public.update_aggregated_recent_performance(uuid) to service_role;
