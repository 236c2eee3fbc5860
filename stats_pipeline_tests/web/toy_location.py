"""What Dagster's UI shows in the tests of the door: an asset, a job that waits for a file, a sensor, a schedule.

`test_attacks.py` and others serve it by a code server of its own, without a daemon: a launch starts at once.
"""

import time
from pathlib import Path

import dagster as dg


@dg.asset
def toy_asset() -> None:
    """Computed at once."""


class Gate(dg.Config):
    """`until` is a file; the op ends when it is there."""

    until: str = ""


@dg.op
def pass_gate(context: dg.OpExecutionContext, config: Gate) -> None:
    context.log.info("at the gate")
    print("printed at the gate", flush=True)  # a log that the UI offers for download
    while config.until and not Path(config.until).exists():
        time.sleep(0.05)
    context.log.info("through the gate")


@dg.job(executor_def=dg.in_process_executor)
def toy_job() -> None:
    pass_gate()


@dg.sensor(job=toy_job, default_status=dg.DefaultSensorStatus.RUNNING)
def toy_sensor() -> dg.SkipReason:
    return dg.SkipReason("only to be looked at")


toy_schedule = dg.ScheduleDefinition(job=toy_job, cron_schedule="0 2 * * *")

defs = dg.Definitions(assets=[toy_asset], jobs=[toy_job], sensors=[toy_sensor], schedules=[toy_schedule])
