"""Dagster's own commands, run in a process that has them imported: the code server and the daemon.

Both profiles use them; what `fast` changes in the daemon is in `daemon.py`.
"""

from pathlib import Path

from dagster._cli.api import grpc_command  # `dagster api grpc`
from dagster._daemon.cli import run_command  # `dagster-daemon run`

# Each waiting sensor holds a worker thread; Dagster's default leaves too few on a small machine.
_WORKERS = 16


def serve_code(socket: Path, *, module: str, folder: Path | None, location: str) -> None:
    """Serve the definitions in `module` until SIGTERM. A module that is not installed is looked for in `folder`."""
    where = () if folder is None else ("--working-directory", str(folder))
    what = ("--module-name", module, *where, "--location-name", location)
    grpc_command.main(["--socket", str(socket), "--max-workers", str(_WORKERS), *what], standalone_mode=False)


def run_daemon(workspace: Path) -> None:
    """Evaluate the sensors and schedules of the workspace, and launch runs, until SIGTERM."""
    run_command.main(["--workspace", str(workspace)], standalone_mode=False)
