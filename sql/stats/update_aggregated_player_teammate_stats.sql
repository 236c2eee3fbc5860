create table if not exists public.aggregated_player_teammate_stats (
    player_id integer primary key,
    tenant_id uuid not null,
    teammate_chemistry_all jsonb default '[]',
    last_updated timestamptz default now()
);

create index if not exists aggregated_player_teammate_stats_tenant_idx
on public.aggregated_player_teammate_stats (tenant_id);

alter table public.aggregated_player_teammate_stats enable row level security;
revoke all on public.aggregated_player_teammate_stats from public, anon, authenticated;
grant select, insert, update, delete on public.aggregated_player_teammate_stats to service_role;

-- With whom a player scores best: the mean of the player's own points over the matches on one side with each teammate.
-- Ringers are subjects but never teammates.
create or replace function public.update_aggregated_player_teammate_stats(
    target_tenant_id uuid default '00000000-0000-0000-0000-000000000001'
)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
set jit = off
as $$
begin
    perform stats_pipeline.lock_refresh('update_aggregated_player_teammate_stats', target_tenant_id);
    perform stats_pipeline.tell_odd_rows(target_tenant_id);

    with game as materialized (
        select a.player_id, a.match_id, a.side, a.points
        from stats_pipeline.appearances(target_tenant_id) as a
        where a.side is not null
    ),
    pair as (
        select
            own.player_id,
            teammate.player_id as teammate_id,
            count(*) as games,
            sum(own.points)::numeric / count(*) as average
        from game as own
        inner join game as teammate
            on teammate.match_id = own.match_id
            and teammate.side = own.side
            and teammate.player_id <> own.player_id
        group by own.player_id, teammate.player_id
        having count(*) >= 10
    ),
    fresh as materialized (
        select
            target_tenant_id as tenant_id,
            pair.player_id,
            jsonb_agg(
                jsonb_build_object(
                    'player_id', pair.teammate_id,
                    'name', p.name,
                    'games_played_with', pair.games,
                    'average_fantasy_points_with', round(pair.average, 2)
                )
                order by pair.average desc, pair.games desc, p.name
            ) as teammates
        from pair
        inner join stats_pipeline.squad(target_tenant_id) as p on p.player_id = pair.teammate_id
        where not p.is_ringer and p.is_retired is not true
        group by pair.player_id
    ),
    stale as (
        delete from public.aggregated_player_teammate_stats as stored
        where stored.tenant_id = target_tenant_id
            and not exists (select from fresh where fresh.player_id = stored.player_id)
    )
    insert into public.aggregated_player_teammate_stats (tenant_id, player_id, teammate_chemistry_all)
    select tenant_id, player_id, teammates
    from fresh
    except
    select tenant_id, player_id, teammate_chemistry_all
    from public.aggregated_player_teammate_stats
    where tenant_id = target_tenant_id
    on conflict (player_id) do update set
        tenant_id = excluded.tenant_id,
        teammate_chemistry_all = excluded.teammate_chemistry_all,
        last_updated = excluded.last_updated;

    perform stats_pipeline.stamp_cache(
        target_tenant_id, 'player_teammate_stats', 'player_teammate_stats', relabel => true
    );
end;
$$;

revoke all on function public.update_aggregated_player_teammate_stats(uuid) from public, anon, authenticated;
grant execute on function public.update_aggregated_player_teammate_stats(uuid) to service_role;
