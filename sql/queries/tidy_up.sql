-- End attempts at rows that were changed while they were locked, drop set-aside things that are no longer needed, and
-- add up the measurements.
select
    stats_pipeline.withdraw_attempts(null), stats_pipeline.forget_aside(), stats_pipeline.add_up_measurements();
