"""`python -m stats_pipeline.web [WORKSPACE]`: the web process that `up` keeps running, on a migrated database."""

import secrets
import sys
from pathlib import Path

from stats_pipeline import database, settings
from stats_pipeline.web.server import serve

if __name__ == "__main__":
    loaded = settings.load()
    workspace = Path(sys.argv[1]) if sys.argv[1:] else None
    serve(loaded, database.running_url(loaded), workspace=workspace, start_key=secrets.token_bytes(32))
