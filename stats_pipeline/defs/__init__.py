"""Everything Dagster loads or runs: resources, ops, assets, jobs, hooks, sensors, schedules.

One module per Dagster noun, and nothing is re-exported, so importing the package does no work. Rules of the domain do
not live here: these modules call `jobs/`, never the other way round.
"""
