"""Writes `sql/schema.json`: the objects that the migrations create in an empty database, one per line."""

import json
import tempfile
from pathlib import Path
from unittest import mock

from stats_pipeline import database
from stats_pipeline.database import embedded, migrate, schema


def as_made(url: str) -> str:
    """Migrate an empty database without comparing it to anything, and describe it."""
    with (
        mock.patch.object(schema, "repair", return_value=()),
        database.connect(url, autocommit=True) as connection,
    ):
        migrate.migrate(connection)
        return "[\n" + ",\n".join(json.dumps(part) for part in schema.describe(connection)) + "\n]\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, embedded.running(Path(folder)) as url:
        schema.AS_MADE.write_text(as_made(url))
