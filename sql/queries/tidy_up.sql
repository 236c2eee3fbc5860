-- Attempts at rows that were changed while somebody held them end, what nobody wants any more is forgotten, what was
-- measured is added up.
select
    stats_pipeline.withdraw_attempts(null), stats_pipeline.forget_aside(), stats_pipeline.add_up_measurements();
