"""The main job with real processes: enqueued in each way, up to the filled tables and the app, and its failures."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb

from stats_pipeline.catalog import STATS_FUNCTIONS, StatsFunction
from stats_pipeline_tests.acceptance.app_server import App
from stats_pipeline_tests.acceptance.processes import Pipeline, until

RPCS = {function.rpc for function in STATS_FUNCTIONS}
TAGS = {tag for function in STATS_FUNCTIONS for tag in function.cache_tags}
TABLES = [table for function in STATS_FUNCTIONS for table in function.tables]
CLUB = "11111111-1111-4111-8111-111111111111"
ALL_TIME, HALL_OF_FAME = STATS_FUNCTIONS[1], STATS_FUNCTIONS[2]


@pytest.fixture(autouse=True)
def nothing_received_yet(app: App) -> None:
    app.received.clear()


def payload(**fields: Any) -> Jsonb:
    return Jsonb({"triggeredBy": "admin", "requestId": str(uuid4()), **fields})


def enqueue(pipeline: Pipeline, **fields: Any) -> UUID:
    return UUID(pipeline.value("select public.enqueue_stats_job(%s) ->> 'jobId'", payload(**fields)))


def through_the_function(pipeline: Pipeline) -> UUID:
    return enqueue(pipeline, triggeredBy="post-match", matchId=1)


def through_a_row(pipeline: Pipeline) -> UUID:
    inserted = pipeline.value(
        "insert into public.background_job_status (job_payload, status) values (%s, 'queued') returning id",
        payload(userId="admin"),
    )
    return UUID(str(inserted))


def through_a_message(pipeline: Pipeline) -> UUID:
    message = payload(triggeredBy="cron")
    pipeline.query("select pgmq.send('stats_update', %s::jsonb)", message)
    request = message.obj["requestId"]
    rows = until(
        lambda: pipeline.query(
            "select id from public.background_job_status where job_payload ->> 'requestId' = %s", request
        ),
        "a row for the message",
    )
    return UUID(str(rows[0]["id"]))


def ended(pipeline: Pipeline, job_id: UUID) -> dict[str, Any]:
    """The job's row, once the job is over."""

    def row() -> dict[str, Any]:
        job = pipeline.job(job_id)
        return job if job["status"] in ("completed", "failed") else {}

    return until(row, f"the end of job {job_id}")


def received(app: App) -> list[str]:
    """All tags that came with the right key, in order."""
    return [tag for call in app.received for tag in call.tags]


@contextmanager
def replaced(pipeline: Pipeline, function: StatsFunction, body: str) -> Iterator[None]:
    """Another function in the place of this one, which is `public.the_original` meanwhile."""
    pipeline.query(f"alter function public.{function.rpc}(uuid) rename to the_original")
    pipeline.query(
        f"create function public.{function.rpc}(target_tenant_id uuid default '00000000-0000-0000-0000-000000000001') "
        f"returns void language plpgsql as $$ begin {body} end $$"
    )
    try:
        yield
    finally:
        pipeline.query(f"drop function public.{function.rpc}(uuid)")
        pipeline.query(f"alter function public.the_original(uuid) rename to {function.rpc}")


@pytest.mark.parametrize("door", [through_the_function, through_a_row, through_a_message])
def test_a_job_comes_through_each_door_to_its_end(
    pipeline: Pipeline, app: App, door: Callable[[Pipeline], UUID]
) -> None:
    pipeline.query("truncate " + ", ".join(f"public.{table}" for table in TABLES))

    job = ended(pipeline, door(pipeline))

    assert (job["status"], job["error_message"], job["attempts"]) == ("completed", None, 1)
    assert job["created_at"] <= job["started_at"] <= job["completed_at"]
    results = job["results"]
    outcomes = {rpc: (result["status"], result["attempts"]) for rpc, result in results["functions"].items()}
    assert outcomes == dict.fromkeys(RPCS, ("success", 1))
    assert (results["total_functions"], results["successful_functions"], results["failed_functions"]) == (
        len(RPCS),
        len(RPCS),
        0,
    )
    assert results["cache"] == {"status": "delivered", "delivered": sorted(TAGS), "pending": []}
    assert results["run_id"] == job["run_id"]

    assert [table for table in TABLES if not pipeline.value(f"select count(*) from public.{table}")] == []
    assert sorted(received(app)) == sorted(TAGS)
    assert pipeline.value("select count(*) from pgmq.q_stats_update") == 0


def test_a_job_that_comes_while_the_sensor_launches_another_one_is_not_kept_waiting(pipeline: Pipeline) -> None:
    """Of another club, so that it need not wait for the other's run. With Dagster's own pace it takes 2.5 s longer."""
    leased = (
        "select 1 from public.background_job_status as j join pgmq.q_stats_update as q using (msg_id) "
        "where j.id = %s and q.vt > clock_timestamp()"
    )
    longer = []
    for _ in range(7):
        job_id = enqueue(pipeline)
        until(lambda job_id=job_id: pipeline.query(leased, job_id), "the first one's lease")  # type: ignore[misc]
        second, first = ended(pipeline, enqueue(pipeline, tenantId=CLUB)), ended(pipeline, job_id)
        waits = [(job["started_at"] - job["created_at"]).total_seconds() for job in (first, second)]
        longer.append(waits[1] - waits[0])
    assert sorted(longer)[3] < 1.5, longer


def test_the_tables_hold_what_the_matches_say(pipeline: Pipeline) -> None:
    ended(pipeline, enqueue(pipeline))
    wrong = pipeline.query(
        """
        select a.player_id from public.aggregated_all_time_stats as a
        join (
            select pm.player_id, count(*) as played, sum(pm.goals) as goals from public.player_matches as pm
            group by pm.player_id
        ) as m using (player_id)
        where (a.games_played, a.goals) is distinct from (m.played, m.goals)
        """
    )
    assert wrong == []


def test_a_function_that_fails_for_good_takes_no_other_with_it(pipeline: Pipeline, app: App) -> None:
    with replaced(pipeline, HALL_OF_FAME, "raise exception using errcode = '42501', message = 'no right to fame';"):
        failed = ended(pipeline, enqueue(pipeline, triggeredBy="post-match", matchId=7))
    assert failed["status"] == "failed"
    assert failed["error_message"] == f"Failed functions: {HALL_OF_FAME.rpc} (no right to fame (SQLSTATE 42501))"
    functions = failed["results"]["functions"]
    assert {rpc for rpc, result in functions.items() if result["status"] == "success"} == RPCS - {HALL_OF_FAME.rpc}
    result = functions[HALL_OF_FAME.rpc]
    assert (result["status"], result["attempts"]) == ("failed", 1)
    assert result["error"] == "no right to fame (SQLSTATE 42501)"
    assert sorted(received(app)) == sorted(TAGS - set(HALL_OF_FAME.cache_tags))

    app.received.clear()
    retried = UUID(pipeline.value("select public.retry_stats_job(%s) ->> 'jobId'", failed["id"]))
    assert retried != failed["id"]
    completed = ended(pipeline, retried)
    assert (completed["status"], completed["retry_of"]) == ("completed", failed["id"])
    assert completed["job_payload"]["retryOf"] == str(failed["id"])
    assert set(HALL_OF_FAME.cache_tags) <= set(received(app))
    assert pipeline.job(failed["id"])["status"] == "failed"


def test_a_function_that_fails_once_is_tried_again(pipeline: Pipeline) -> None:
    pipeline.query("create sequence public.tries")  # what it counts survives the rollback of the try
    once = "if nextval('public.tries') = 1 then raise exception 'not now'; end if; "
    try:
        with replaced(pipeline, ALL_TIME, once + "perform public.the_original(target_tenant_id);"):
            job = ended(pipeline, enqueue(pipeline))
        assert pipeline.value("select last_value from public.tries") == 2
    finally:
        pipeline.query("drop sequence public.tries")
    assert job["status"] == "completed"
    assert {rpc: result["attempts"] for rpc, result in job["results"]["functions"].items()} == {
        rpc: 2 if rpc == ALL_TIME.rpc else 1 for rpc in RPCS
    }
    assert "error" not in job["results"]["functions"][ALL_TIME.rpc]


def test_a_function_that_keeps_failing_is_given_up_after_three_tries(pipeline: Pipeline) -> None:
    with replaced(pipeline, ALL_TIME, "raise exception 'never';"):
        job = ended(pipeline, enqueue(pipeline))
    assert job["status"] == "failed"
    result = job["results"]["functions"][ALL_TIME.rpc]
    assert (result["status"], result["attempts"], result["error"]) == ("failed", 3, "never (SQLSTATE P0001)")


def test_a_function_that_is_missing_fails_by_name(pipeline: Pipeline) -> None:
    pipeline.query(f"alter function public.{ALL_TIME.rpc}(uuid) rename to the_original")
    try:
        job = ended(pipeline, enqueue(pipeline))
    finally:
        pipeline.query(f"alter function public.the_original(uuid) rename to {ALL_TIME.rpc}")
    result = job["results"]["functions"][ALL_TIME.rpc]
    assert (job["status"], result["attempts"]) == ("failed", 1)
    assert f"function public.{ALL_TIME.rpc}() does not exist" in result["error"]


def test_twenty_jobs_at_once_are_a_handful_of_runs(pipeline: Pipeline) -> None:
    with ThreadPoolExecutor(20) as threads:
        ids = list(threads.map(lambda _: enqueue(pipeline), range(20)))
    jobs = [ended(pipeline, job_id) for job_id in ids]
    assert [job["status"] for job in jobs] == ["completed"] * 20
    assert len({job["run_id"] for job in jobs}) <= 5
    assert pipeline.value("select count(*) from pgmq.q_stats_update") == 0


def test_a_request_that_is_sent_twice_is_one_job(pipeline: Pipeline) -> None:
    request = str(uuid4())
    first = enqueue(pipeline, requestId=request)
    ended(pipeline, first)
    assert enqueue(pipeline, requestId=request) == first
    assert pipeline.job(first)["attempts"] == 1


def test_two_clubs_have_their_own_runs(pipeline: Pipeline) -> None:
    clubs = [uuid4(), uuid4()]
    jobs = [ended(pipeline, enqueue(pipeline, tenantId=str(club))) for club in clubs]
    assert [job["status"] for job in jobs] == ["completed"] * 2
    assert [job["tenant_id"] for job in jobs] == clubs
    assert jobs[0]["run_id"] != jobs[1]["run_id"]


def test_a_malformed_message_is_a_failed_job_and_keeps_nobody_waiting(pipeline: Pipeline) -> None:
    pipeline.query("select pgmq.send('stats_update', '[\"no object\"]')")
    assert ended(pipeline, enqueue(pipeline))["status"] == "completed"
    [rejected] = pipeline.query("select * from public.background_job_status where error_message like 'Rejected: %%'")
    assert rejected["status"] == "failed"
    assert rejected["error_message"] == "Rejected: payload must be a JSON object"


# The UI


LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""


@pytest.fixture
def ask(pipeline: Pipeline) -> Callable[..., Any]:
    """Ask the web server what the UI asks it."""
    return pipeline.ask_dagster


def launched(
    pipeline: Pipeline,
    ask: Callable[..., Any],
    job_name: str,
    tables: Iterable[str],
    run_config: Mapping[str, object] = MappingProxyType({}),
) -> dict[str, Any]:
    """Launch a job by hand for some tables, as the UI does; the row that it makes, once it is over."""
    params = {
        "selector": {
            "repositoryLocationName": "stats_pipeline",
            "repositoryName": "__repository__",
            "jobName": job_name,
            "assetSelection": [{"path": [table]} for table in tables],
            "assetCheckSelection": [],
        },
        "mode": "default",
        "runConfigData": dict(run_config),
        "executionMetadata": {"tags": []},
    }
    answer = ask(LAUNCH, params=params)["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    [row] = until(
        lambda: pipeline.query("select id from public.background_job_status where run_id = %s", answer["run"]["runId"]),
        "the run's job",
    )
    return ended(pipeline, row["id"])


@pytest.mark.parametrize("job_name", ["__ASSET_JOB", "stats_update"])
def test_a_table_refreshed_alone_from_the_ui_is_a_job_too(
    pipeline: Pipeline, app: App, ask: Callable[..., Any], job_name: str
) -> None:
    pipeline.query("truncate public.aggregated_all_time_stats")
    job = launched(pipeline, ask, job_name, ALL_TIME.tables)
    assert (job["status"], job["msg_id"], job["attempts"]) == ("completed", None, 1)
    assert list(job["results"]["functions"]) == [ALL_TIME.rpc]
    assert (job["results"]["total_functions"], job["results"]["successful_functions"]) == (1, 1)
    assert received(app) == list(ALL_TIME.cache_tags)
    assert pipeline.value("select count(*) from public.aggregated_all_time_stats") > 0


def test_the_same_job_with_dagsters_own_executor(pipeline: Pipeline, app: App, ask: Callable[..., Any]) -> None:
    """Selected in the launchpad of the UI."""
    run_config: dict[str, Any] = {"execution": {"config": {"in_process": {}}}}
    job = launched(pipeline, ask, "stats_update", TABLES, run_config)
    assert (job["status"], job["attempts"]) == ("completed", 1)
    assert set(job["results"]["functions"]) == RPCS
    assert job["results"]["successful_functions"] == len(RPCS)
    assert set(received(app)) == TAGS


def test_the_ui_shows_rows_seconds_and_jobs_of_each_table(pipeline: Pipeline, ask: Callable[..., Any]) -> None:
    job = ended(pipeline, enqueue(pipeline))
    # The job has ended with its last tag; Dagster writes up its run for a moment longer.
    status = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
    until(lambda: ask(status, id=job["run_id"])["runOrError"]["status"] == "SUCCESS", "the end of its run")
    nodes = ask(
        """
        query { assetNodes(loadMaterializations: true) { assetKey { path } isMaterializable
          assetMaterializations(limit: 1) { runId metadataEntries {
            label ... on IntMetadataEntry { intValue } ... on FloatMetadataEntry { floatValue }
            ... on JsonMetadataEntry { jsonString } } } } }
        """,
    )["assetNodes"]
    shown = {node["assetKey"]["path"][-1]: node["assetMaterializations"] for node in nodes if node["isMaterializable"]}
    assert shown.keys() == set(TABLES)
    for table, [materialization] in shown.items():
        assert materialization["runId"] == job["run_id"]
        entries = {entry["label"]: entry for entry in materialization["metadataEntries"]}
        assert entries["rows"]["intValue"] == pipeline.value(
            f"select count(*) from public.{table} where tenant_id = '00000000-0000-0000-0000-000000000001'"
        )
        assert entries["seconds"]["floatValue"] >= 0
        assert str(job["id"]) in entries["jobs"]["jsonString"]


def test_the_ui_shows_the_sensor_and_the_schedule_running(ask: Callable[..., Any]) -> None:
    repository = ask(
        """
        query { repositoryOrError(repositorySelector: {
            repositoryName: "__repository__", repositoryLocationName: "stats_pipeline"}) { ... on Repository {
          sensors { name sensorState { status } } schedules { name cronSchedule scheduleState { status } } } } }
        """,
    )["repositoryOrError"]
    assert {sensor["name"] for sensor in repository["sensors"]} == {"stats_queue", "stats_upkeep", "stats_relay"}
    assert {sensor["sensorState"]["status"] for sensor in repository["sensors"]} == {"RUNNING"}
    assert {
        "name": "nightly_stats",
        "cronSchedule": "0 2 * * *",
        "scheduleState": {"status": "RUNNING"},
    } in repository["schedules"]
