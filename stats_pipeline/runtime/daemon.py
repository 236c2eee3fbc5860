"""Dagster's daemon with the run launcher's fork server started first: `python -m stats_pipeline.runtime.daemon run …`.

Dagster touches the launcher only when it launches, so the first job after a start would wait a second for imports.
Arguments are those of `dagster-daemon`; nothing about the daemon itself is changed here.
"""

import dagster as dg
from dagster._daemon.cli import main  # what `dagster-daemon` calls

from stats_pipeline.runtime.launcher import ForkserverRunLauncher

if __name__ == "__main__":
    with dg.DagsterInstance.get() as instance:
        if isinstance(instance.run_launcher, ForkserverRunLauncher):
            instance.run_launcher.warm()
    main()
