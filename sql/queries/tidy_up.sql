-- What nobody wants any more is forgotten, what was measured is added up.
select stats_pipeline.forget_aside(), stats_pipeline.add_up_measurements();
