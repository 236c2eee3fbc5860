"""The life of a job. It knows the database, not Dagster."""
