"""Jobs for the executor and launcher tests that Dagster must be able to import by name, also in another process.

They stand in for the product's own job and know nothing of it. Jobs that only one test needs are defined there.
"""

import os
import threading
from multiprocessing.connection import Client

import dagster as dg

from stats_pipeline.runtime.executor import thread_executor

ADDRESS_TAG = "toy/address"  # of the socket at which a test waits for `reporting` to say that it runs
NAMES = [f"stat_{i}" for i in range(10)]
NOTHING = dg.Out(dg.Nothing)

broken = threading.Event()  # while set, `flaky` fails; only seen by runs in the test's own process
hooked: list[str] = []


@dg.op(out=NOTHING)
def steady() -> None:
    pass


@dg.op(out=NOTHING)
def flaky() -> None:
    if broken.is_set():
        raise RuntimeError("broken on purpose")


@dg.op(ins={"upstream": dg.In(dg.Nothing)}, out=NOTHING)
def downstream() -> None:
    pass


@dg.job(executor_def=thread_executor)
def steady_and_flaky() -> None:
    steady()
    downstream(flaky())


@dg.op(out=NOTHING)
def reporting(context: dg.OpExecutionContext) -> None:
    """Tell the waiting test which process this is, then block in a system call until it answers or goes away."""
    with Client(context.run.tags[ADDRESS_TAG], "AF_UNIX") as test:
        test.send({"pid": os.getpid(), "parent": os.getppid(), "session": os.getsid(0), "loaded": LOADED_BY})
        if test.recv() == "fail":
            raise RuntimeError("broken on purpose")


LOADED_BY = os.getpid()  # the process that imported this module: not the worker's, if it was forked after the import


@dg.job(executor_def=thread_executor)
def reporting_job() -> None:
    reporting()


@dg.success_hook
def result_hook(context: dg.HookContext) -> None:
    hooked.append(context.op.name)


def build_stat(name: str) -> dg.AssetsDefinition:
    @dg.op(name=name, ins={"source": dg.In(dg.Nothing)}, out=NOTHING)
    def stat(context: dg.OpExecutionContext) -> None:
        context.add_output_metadata({"rows": 1})

    return dg.AssetsDefinition.from_op(
        stat,
        group_name="stats",
        hook_defs={result_hook},
        keys_by_input_name={"source": dg.AssetKey("source")},
        keys_by_output_name={"result": dg.AssetKey([name])},
    )


assets = [build_stat(name) for name in NAMES]
defs = dg.Definitions(
    assets=[dg.AssetSpec("source"), *assets],
    jobs=[
        dg.define_asset_job("asset_job", dg.AssetSelection.assets(*assets), executor_def=thread_executor),
        steady_and_flaky,
        reporting_job,
    ],
    executor=thread_executor,
)


def asset_job() -> dg.JobDefinition:
    return defs.resolve_job_def("asset_job")
