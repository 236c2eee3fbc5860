"""The admin's page and the app's HTTP API: one small Starlette app over the same functions as the command line.

Nothing here defines jobs: rows, enqueueing and retrying belong to `jobs/` and the database.
Nothing here imports Dagster.
"""
