"""The definitions that Dagster loads: the shape of the graph, the lineage, and that loading needs only the code."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.dependency import NodeHandle  # the name of an op in a graph, for its hooks

from stats_pipeline.catalog import STATS_FUNCTIONS, StatsFunction
from stats_pipeline.definitions import build_defs
from stats_pipeline.defs.assets import build_source_assets, build_stats_assets
from stats_pipeline.defs.hooks import STOCK_HOOKS
from stats_pipeline.defs.jobs import JOB_NAME, PRUNE_JOB_NAME, build_stats_job
from stats_pipeline.defs.ops import RETRY_POLICY
from stats_pipeline.settings import PROJECT_ROOT, Settings

RPCS = {function.rpc for function in STATS_FUNCTIONS}


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    return build_defs(Settings.model_validate({}))


@pytest.fixture(scope="module")
def job(definitions: dg.Definitions) -> dg.JobDefinition:
    return definitions.resolve_job_def(JOB_NAME)


def edges(job: dg.JobDefinition) -> set[tuple[str, str]]:
    """Pairs of ops of which the second waits for the first."""
    structure = job.graph.dependency_structure
    return {
        (output.node_name, node.name)
        for node in job.graph.nodes
        for outputs in structure.input_to_upstream_outputs_for_node(node.name).values()
        for output in outputs
    }


def test_one_op_per_function_that_waits_for_no_other_unless_the_catalog_says_so(job: dg.JobDefinition) -> None:
    assert set(job.graph.node_dict) == RPCS
    assert edges(job) == {(earlier, function.rpc) for function in STATS_FUNCTIONS for earlier in function.after}


def test_every_op_has_the_hooks_the_retry_policy_and_the_executor(job: dg.JobDefinition) -> None:
    for node in job.graph.nodes:
        assert job.get_all_hooks_for_handle(NodeHandle(node.name, None)) == STOCK_HOOKS
        assert isinstance(node.definition, dg.OpDefinition)
        assert node.definition.retry_policy == RETRY_POLICY
    assert job.executor_def is dg.multi_or_in_process_executor


def test_the_fast_profile_has_one_hook_and_an_executor_of_ours() -> None:
    definitions = build_defs(Settings.model_validate({"STATS_RUNTIME": "fast"}))
    job = definitions.resolve_job_def(JOB_NAME)
    for node in job.graph.nodes:
        assert [hook.name for hook in job.get_all_hooks_for_handle(NodeHandle(node.name, None))] == ["record_outcome"]
    assert job.executor_def.name == "thread_executor"
    assert definitions.resolve_job_def(PRUNE_JOB_NAME).executor_def.name == "thread_executor"


def test_the_stock_profile_imports_nothing_of_ours_that_is_private() -> None:
    """It is what remains when Dagster has moved a private name."""
    code = "import sys, stats_pipeline.definitions; print(*(name for name in sys.modules if '.runtime.' in name))"
    loaded = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert [name for name in loaded.stdout.split() if name.startswith("stats_pipeline.")] == []


def test_three_tries_with_growing_waits_that_differ_between_ops() -> None:
    assert RETRY_POLICY.max_retries == 2
    assert RETRY_POLICY.backoff is dg.Backoff.EXPONENTIAL
    assert RETRY_POLICY.jitter is not None


def test_the_lineage_is_the_catalogs(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    parents = {
        key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys}
        for key in graph.materializable_asset_keys
    }
    filled = {function.rpc: set(function.tables) for function in STATS_FUNCTIONS}
    assert parents == {
        table: set(function.reads).union(*(filled[rpc] for rpc in function.after))
        for function in STATS_FUNCTIONS
        for table in function.tables
    }
    sources = {key.to_user_string() for key in graph.external_asset_keys}
    assert sources == {table for function in STATS_FUNCTIONS for table in function.reads} - set().union(
        *filled.values()
    )


def test_the_sensor_and_the_schedule_run_by_default(definitions: dg.Definitions) -> None:
    assert definitions.resolve_sensor_def("stats_queue").default_status is dg.DefaultSensorStatus.RUNNING
    schedule = definitions.resolve_schedule_def("nightly_stats")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 2 * * *", "UTC")


def test_sensors_are_looked_at_each_second_and_run_by_default() -> None:
    """Dagster's own default is half a minute between two ticks."""
    app = {"NEXT_PUBLIC_APP_URL": "http://app", "INTERNAL_API_KEY": "a key of some length"}
    sensors = list(build_defs(Settings.model_validate(app)).sensors or [])
    assert {sensor.name for sensor in sensors} == {"stats_queue", "stats_upkeep", "stats_relay"}
    for sensor in sensors:
        assert isinstance(sensor, dg.SensorDefinition)
        assert sensor.minimum_interval_seconds == 1
        assert sensor.default_status is dg.DefaultSensorStatus.RUNNING


def test_without_an_app_nobody_relays(definitions: dg.Definitions) -> None:
    names = {sensor.name for sensor in definitions.sensors or [] if isinstance(sensor, dg.SensorDefinition)}
    assert names == {"stats_queue", "stats_upkeep"}


def test_the_schedules_time_is_a_setting() -> None:
    settings = Settings.model_validate({"STATS_CRON": "30 5 * * 1", "STATS_TIMEZONE": "Europe/London"})
    schedule = build_defs(settings).resolve_schedule_def("nightly_stats")
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("30 5 * * 1", "Europe/London")


def test_an_eleventh_function_is_one_entry() -> None:
    settings = Settings.model_validate({"STATS_OPTIONAL_FUNCTIONS": "update_aggregated_player_teammate_stats"})
    job = build_defs(settings).resolve_job_def(JOB_NAME)
    assert set(job.graph.node_dict) == RPCS | {"update_aggregated_player_teammate_stats"}


def test_after_adds_an_edge() -> None:
    first, second = STATS_FUNCTIONS[1], dataclasses.replace(STATS_FUNCTIONS[2], after=(STATS_FUNCTIONS[1].rpc,))
    assert edges(_job_of(first, second)) == {(first.rpc, second.rpc)}


def test_after_a_function_with_two_tables_waits_for_both() -> None:
    first, second = STATS_FUNCTIONS[0], dataclasses.replace(STATS_FUNCTIONS[1], after=(STATS_FUNCTIONS[0].rpc,))
    stats_assets = build_stats_assets([first, second])
    assert {key.to_user_string() for key in stats_assets[1].dependency_keys} == {*second.reads, *first.tables}


def _job_of(*functions: StatsFunction) -> dg.JobDefinition:
    stats_assets = build_stats_assets(functions)
    return dg.Definitions(
        assets=[*build_source_assets(functions), *stats_assets],
        jobs=[build_stats_job(stats_assets)],
        resources={"refresh": dg.ResourceDefinition.none_resource()},
    ).resolve_job_def(JOB_NAME)


def load_in_a_process_of_its_own(tmp_path: Path, **environment: str) -> str:
    code = (
        f"from stats_pipeline.definitions import defs; print(len(defs.resolve_job_def({JOB_NAME!r}).graph.node_dict))"
    )
    loaded = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **environment},
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    return loaded.stdout.strip()


def test_loading_needs_no_environment_and_leaves_no_files(tmp_path: Path) -> None:
    assert load_in_a_process_of_its_own(tmp_path) == str(len(RPCS))
    assert not list(tmp_path.iterdir())


def test_loading_opens_no_connection(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        load_in_a_process_of_its_own(
            tmp_path,
            STATS_DATABASE_URL=f"postgresql://{address}/app",
            NEXT_PUBLIC_APP_URL=f"http://{address}",
            INTERNAL_API_KEY="0123456789abcdef",
        )
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody is waiting to be accepted
            listening.accept()
