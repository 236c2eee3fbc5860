"""Everything Dagster loads or runs: resources, ops, assets, jobs, hooks, sensors, schedules.

One module per Dagster concept, and nothing is re-exported, so importing the package does no work. Domain rules do not
live here: these modules call `jobs/`, never the other way round.
"""
