-- Void the leases that no run has claimed in time.
select stats_pipeline.expire_leases();
