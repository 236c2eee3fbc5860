"""The parts of Dagster that are replaced or wrapped. It knows nothing of jobs, settings or the database."""
