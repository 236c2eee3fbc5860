"""The admin's page and the app's HTTP door: one small Starlette app over the same functions as the command line.

Nothing here decides what a job is or does: rows, enqueueing and retrying belong to `jobs/` and the database.
Nothing here imports Dagster.
"""
