"""`python -m stats_pipeline.web`: the web process that `up` keeps running, on a database that is already migrated."""

from stats_pipeline import database, settings
from stats_pipeline.web.server import serve

if __name__ == "__main__":
    loaded = settings.load()
    serve(loaded, database.running_url(loaded))
