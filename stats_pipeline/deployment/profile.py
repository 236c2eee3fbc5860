"""The profiles of `up`, as the `dagster.yaml` that it writes: `fast`, with our parts, and `stock`, with Dagster's.

Both are based on the project's own `dagster.yaml`, which Dagster's own commands read. Executor and hooks are chosen in
`defs/`, by the same setting.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from stats_pipeline import database
from stats_pipeline.errors import StatsPipelineError
from stats_pipeline.runtime import private
from stats_pipeline.settings import FILES_ROOT, Runtime

_FAST = """
storage: # runs, events and ticks, in schema `dagster`
  custom:
    module: stats_pipeline.runtime.storage
    class: PooledPostgresStorage
    config:
      postgres_url: {env: STATS_DAGSTER_URL}
      pool_size: 1
      wait_when_refused: %s

secrets: # no .env of the folder that a process was started from
  custom: {module: stats_pipeline.runtime.secrets, class: NoSecrets}

# Runs start at once. How many are open at a time, and one per tenant, is decided where the jobs are leased
# (STATS_MAX_RUNS), before a run exists.
run_coordinator:
  module: dagster._core.run_coordinator
  class: DefaultRunCoordinator

# A run is forked from a process that has everything imported: 0.2 s to its first op, where Dagster's own launcher needs
# 1.3 s for a new Python.
run_launcher:
  module: stats_pipeline.runtime.launcher
  class: ForkserverRunLauncher
  config: {socket: LAUNCH_SOCKET}
"""

_STOCK = """
storage: # runs, events and ticks, in schema `dagster`
  postgres:
    postgres_url: {env: STATS_DAGSTER_URL}
"""

_ADDED: Mapping[Runtime, str] = {"fast": _FAST % json.dumps(database.REFUSED), "stock": _STOCK}


def write_dagster_yaml(folder: Path, runtime: Runtime, launch_socket: Path) -> None:
    """Write the profile's `dagster.yaml` into Dagster's home, in place of any other."""
    folder.mkdir(parents=True, exist_ok=True)
    shared = (FILES_ROOT / "dagster.yaml").read_text()
    written = folder / "dagster.yaml.new"
    added = _ADDED[runtime].replace("LAUNCH_SOCKET", json.dumps(str(launch_socket)))  # JSON quotes any name
    written.write_text(f"# Written by `stats-pipeline up`: the profile is {runtime}.\n\n{shared}{added}")
    written.replace(folder / "dagster.yaml")


def check_names(runtime: Runtime) -> None:
    """Raises `StatsPipelineError` if the installed Dagster lacks a private name that the profile needs."""
    import dagster  # noqa: PLC0415  # a second of imports, while the code server starts

    if lacks := private.missing(private.IN_EVERY_PROFILE):
        raise StatsPipelineError(
            f"Dagster {dagster.__version__} has no {', '.join(lacks)}, which `up` needs: "
            "install a version that pyproject.toml allows"
        )
    fast = {each.user for each in private.all_private_names()}.difference(private.IN_EVERY_PROFILE)
    if runtime == "fast" and (lacks := private.missing(fast)):
        raise StatsPipelineError(
            f"Dagster {dagster.__version__} has no {', '.join(lacks)}, which the fast runtime needs: "
            "set STATS_RUNTIME=stock, or install a version that pyproject.toml allows"
        )
