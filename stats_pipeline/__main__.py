"""The command line as `python -m stats_pipeline`."""

from stats_pipeline.cli import app

if __name__ == "__main__":
    app()
