"""Dagster's code server: loads the definitions, evaluates sensors and schedules."""

from pathlib import Path

from dagster._cli.api import grpc_command  # `dagster api grpc`

# Each waiting sensor holds a worker thread; Dagster's default leaves too few on a small machine.
_WORKERS = 16


def serve(socket: Path, *, module: str, folder: Path | None, location: str) -> None:
    """Serve the definitions in `module` until SIGTERM. A module that is not installed is looked for in `folder`."""
    where = () if folder is None else ("--working-directory", str(folder))
    what = ("--module-name", module, *where, "--location-name", location)
    grpc_command.main(["--socket", str(socket), "--max-workers", str(_WORKERS), *what], standalone_mode=False)
