-- The biggest victory's margin among a tenant's played matches with at least one regular, one match left out if asked;
-- null when there is no such match. Widest first, so that line-ups are looked at only until the first regular.
create or replace function stats_pipeline.biggest_margin(
    target_tenant_id uuid,
    ignored_match_id integer default null
)
returns integer
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
    select victory.margin
    from (
        select m.match_id, abs(m.team_a_score - m.team_b_score) as margin
        from stats_pipeline.played_matches(target_tenant_id) as m
        where m.team_a_score <> m.team_b_score
            and m.match_id is distinct from ignored_match_id
        order by margin desc
    ) as victory
    where exists (
        select from public.player_matches as pm
        inner join stats_pipeline.squad(target_tenant_id) as p on p.player_id = pm.player_id
        where pm.match_id = victory.match_id and pm.tenant_id = target_tenant_id and not p.is_ringer
    )
    order by victory.margin desc
    limit 1;
$$;

revoke all on function stats_pipeline.biggest_margin(uuid, integer) from public, anon, authenticated;
grant execute on function stats_pipeline.biggest_margin(uuid, integer) to service_role;
