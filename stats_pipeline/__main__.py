"""The `stats-pipeline` command, also as `python -m stats_pipeline`."""

import os
import signal
import sys


def main() -> None:
    """Run the command line. Ctrl-C during its imports, when there is nothing to stop yet, ends the process at once."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from stats_pipeline.errors import CatalogError  # noqa: PLC0415  # the first of the imports

    try:
        from stats_pipeline.cli.commands import app  # noqa: PLC0415  # it takes a third of a second
    except CatalogError as error:  # all commands are built from the catalog
        sys.exit(f"Error: {error}")

    app()


if __name__ == "__main__":
    main()
