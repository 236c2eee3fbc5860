"""stats-pipeline: refreshes a football club's player statistics after every match.

Importing the package does no work. Start reading at `catalog.toml` (what is refreshed), then `jobs/`
(what happens to a job) and `definitions.py` (what Dagster loads).
"""
