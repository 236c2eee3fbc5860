-- Whether the reference stats are ours, what they hold, and for which day the demo's league was generated.
select
    exists (select from stats_pipeline.migration where kind = 'stats') as is_reference,
    (select count(*) from public.players) as players,
    (select count(*) from public.matches) as matches,
    (select checksum from stats_pipeline.migration where kind = 'demo' and name = 'league') as loaded_for;
