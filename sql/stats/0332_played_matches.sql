-- A tenant's matches that have been played, the one place that decides which: those with a day up to the club's today
-- and two scores from 0 to 999. Inlined, hence no `set search_path`. The day is a subquery, so that it is asked for
-- once; the condition a case that is not null, so that the planner expects nearly all matches and not one in ten
-- thousand; and other scores are null, for a caller's own conditions may come first.
create or replace function stats_pipeline.played_matches(target_tenant_id uuid)
returns table (
    match_id integer,
    tenant_id uuid,
    match_date date,
    team_a_score integer,
    team_b_score integer,
    team_a_own_goals integer,
    team_b_own_goals integer
)
language sql
stable
as $$
    select
        m.match_id,
        m.tenant_id,
        m.match_date,
        case when m.team_a_score between 0 and 999 then m.team_a_score end,
        case when m.team_b_score between 0 and 999 then m.team_b_score end,
        m.team_a_own_goals,
        m.team_b_own_goals
    from public.matches as m
    where m.tenant_id = target_tenant_id
        and case
            when m.match_date > '-infinity'
                and m.match_date <= (select stats_pipeline.stats_today(target_tenant_id))
                and m.team_a_score between 0 and 999
                and m.team_b_score between 0 and 999
                then true
        end is not null;
$$;

revoke all on function stats_pipeline.played_matches(uuid) from public, anon, authenticated;
grant execute on function stats_pipeline.played_matches(uuid) to service_role;
