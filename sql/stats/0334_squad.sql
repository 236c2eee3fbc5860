-- A tenant's players as the statistics show them: nobody without a name, and no name longer than where it is stored.
-- Inlined, hence no `set search_path`.
create or replace function stats_pipeline.squad(target_tenant_id uuid)
returns table (
    player_id integer,
    tenant_id uuid,
    name text,
    is_ringer boolean,
    is_retired boolean,
    selected_club jsonb
)
language sql
stable
as $$
    select
        p.player_id,
        p.tenant_id,
        coalesce(left(p.name::text, 14), '#' || p.player_id),
        coalesce(p.is_ringer, false),
        p.is_retired,
        p.selected_club
    from public.players as p
    where p.tenant_id = target_tenant_id;
$$;

revoke all on function stats_pipeline.squad(uuid) from public, anon, authenticated;
grant execute on function stats_pipeline.squad(uuid) to service_role;
