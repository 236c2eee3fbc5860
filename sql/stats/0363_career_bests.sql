-- What a career has reached, one row per metric (goals in a match, and the six streaks): the value at the last
-- appearance, the highest before it, and the highest of all with the last appearance that reached it. Inlined, hence no
-- `set search_path`.
-- A value and its appearance travel as one number, value in the high 32 bits, so that one maximum finds both. No best
-- is below zero.
create or replace function stats_pipeline.career_bests(games bigint[])
returns table (metric text, current_value integer, previous_best integer, best integer, best_at integer)
language sql
immutable
as $$
    select
        reached.metric,
        (reached.last >> 32)::integer,
        greatest(reached.earlier >> 32, 0)::integer,
        greatest(reached.last >> 32, reached.earlier >> 32, 0)::integer,
        (greatest(reached.last, reached.earlier) & 4294967295)::integer
    from (
        select
            max((goals << 32) | appearance_no) filter (where is_last) as goals,
            max((win << 32) | appearance_no) filter (where is_last) as win,
            max((losing << 32) | appearance_no) filter (where is_last) as losing,
            max((undefeated << 32) | appearance_no) filter (where is_last) as undefeated,
            max((winless << 32) | appearance_no) filter (where is_last) as winless,
            max((scoring << 32) | appearance_no) filter (where is_last) as scoring,
            max((attendance << 32) | appearance_no) filter (where is_last) as attendance,
            max((goals << 32) | appearance_no) filter (where not is_last) as goals_before,
            max((win << 32) | appearance_no) filter (where not is_last) as win_before,
            max((losing << 32) | appearance_no) filter (where not is_last) as losing_before,
            max((undefeated << 32) | appearance_no) filter (where not is_last) as undefeated_before,
            max((winless << 32) | appearance_no) filter (where not is_last) as winless_before,
            max((scoring << 32) | appearance_no) filter (where not is_last) as scoring_before,
            max((attendance << 32) | appearance_no) filter (where not is_last) as attendance_before
        from stats_pipeline.running_streaks(games)
    ) as peak
    cross join lateral (
        values
        ('goals', peak.goals, peak.goals_before),
        ('win', peak.win, peak.win_before),
        ('losing', peak.losing, peak.losing_before),
        ('undefeated', peak.undefeated, peak.undefeated_before),
        ('winless', peak.winless, peak.winless_before),
        ('scoring', peak.scoring, peak.scoring_before),
        ('attendance', peak.attendance, peak.attendance_before)
    ) as reached (metric, last, earlier);
$$;

revoke all on function stats_pipeline.career_bests(bigint[]) from public, anon, authenticated;
grant execute on function stats_pipeline.career_bests(bigint[]) to service_role;
