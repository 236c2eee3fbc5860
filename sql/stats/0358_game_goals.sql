-- The goals in an element of a career (see careers). Inlined, hence no `set search_path`.
create or replace function stats_pipeline.game_goals(game bigint)
returns bigint
language sql
immutable
as $$
    select ((game >> 2) & 1073741823) - 1000;
$$;

revoke all on function stats_pipeline.game_goals(bigint) from public, anon, authenticated;
grant execute on function stats_pipeline.game_goals(bigint) to service_role;
