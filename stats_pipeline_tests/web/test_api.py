"""The JSON API as the app's servers use it: the answers, and the rows in the database after them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, tzinfo
from typing import Any, Self
from uuid import uuid4

import httpx
import pytest
from psycopg import Connection

from stats_pipeline.database import Database
from stats_pipeline.web import api
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.web.conftest import API_KEY, CRON, CRON_SECRET, ENQUEUE, JOBS, KEY, Served

Query = Callable[..., list[dict[str, Any]]]
CRON_KEY = {"Authorization": f"Bearer {CRON_SECRET}"}


def counts(query: Query) -> tuple[int, int]:
    """How many jobs and messages there are."""
    (row,) = query(
        "select (select count(*) from public.background_job_status) as jobs, "
        "(select count(*) from pgmq.q_stats_update) as messages"
    )
    return row["jobs"], row["messages"]


def test_enqueue_answers_at_once_with_the_job_and_its_row_and_message_are_there(
    server: httpx.Client, query: Query
) -> None:
    payload = {"triggeredBy": "post-match", "matchId": 123, "requestId": str(uuid4())}
    response = server.post(ENQUEUE, json=payload)
    assert response.status_code == 202
    answer = response.json()
    assert answer == {
        "success": True,
        "jobId": answer["jobId"],
        "status": "queued",
        "message": "Stats job enqueued",
        "repeated": False,
        "createdAt": answer["createdAt"],
        "completedAt": None,
    }
    again = server.post(ENQUEUE, json=payload).json()
    assert again == answer | {"message": "This request has been enqueued before", "repeated": True}
    assert datetime.fromisoformat(again["createdAt"]) <= datetime.now(UTC)
    assert counts(query) == (1, 1)
    job = server.get(f"{JOBS}/{answer['jobId']}").json()
    assert payload.items() <= job["job_payload"].items()
    assert job["job_payload"]["timestamp"]  # nobody sent one


def test_a_whole_number_is_whole_however_it_is_written(server: httpx.Client) -> None:
    body = '{"triggeredBy": "post-match", "requestId": "1", "matchId": 7.0}'
    answer = server.post(ENQUEUE, content=body, headers={"Content-Type": "application/json"}).json()
    assert str(server.get(f"{JOBS}/{answer['jobId']}").json()["job_payload"]["matchId"]) == "7"


def test_the_same_request_again_is_the_same_job(server: httpx.Client, query: Query) -> None:
    payload = {"triggeredBy": "admin", "requestId": "pressed twice"}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.post(ENQUEUE, json=payload), range(8)))
    assert {response.status_code for response in answers} == {202}
    assert len({response.json()["jobId"] for response in answers}) == 1
    assert counts(query) == (1, 1)


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"requestId": "1"}, "triggeredBy"),
        ({"triggeredBy": "someone", "requestId": "1"}, "triggeredBy"),
        ({"triggeredBy": "admin"}, "requestId"),
        ({"triggeredBy": "admin", "requestId": ""}, "requestId"),
        ({"triggeredBy": "post-match", "requestId": "1", "matchId": "7"}, "matchId"),
        ({"triggeredBy": "admin", "requestId": "1", "tenantId": "the club"}, "tenantId"),
        ({"triggeredBy": "admin", "requestId": "1", "retryOf": str(uuid4())}, "retryOf"),
        (["triggeredBy", "admin"], "payload must be a JSON object"),
        ("admin", "payload must be a JSON object"),
    ],
)
def test_a_bad_payload_is_refused_and_the_answer_names_the_field(
    server: httpx.Client, query: Query, payload: object, field: str
) -> None:
    response = server.post(ENQUEUE, json=payload)
    assert response.status_code == 400
    assert response.json()["success"] is False
    assert field in response.json()["error"]
    assert counts(query) == (0, 0)


def test_a_club_that_does_not_exist_is_refused(server: httpx.Client, query: Query) -> None:
    query("create table public.tenants (id uuid primary key)")
    try:
        response = server.post(ENQUEUE, json={"triggeredBy": "admin", "requestId": "1", "tenantId": str(steps.TENANT)})
    finally:
        query("drop table public.tenants")
    assert response.status_code == 400
    assert response.json()["error"] == f"tenantId must be the id of a row of public.tenants; {steps.TENANT} is none"
    assert counts(query) == (0, 0)


def test_the_list_is_newest_first_in_the_shape_of_the_table(server: httpx.Client) -> None:
    ids = [
        server.post(ENQUEUE, json={"triggeredBy": "cron", "requestId": str(number)}).json()["jobId"]
        for number in range(12)
    ]
    listed = server.get(JOBS).json()
    assert [job["id"] for job in listed] == ids[:1:-1]
    assert len(server.get(JOBS, params={"limit": 3}).json()) == 3
    assert len(server.get(JOBS, params={"limit": 100}).json()) == 12
    assert {
        "id",
        "job_type",
        "job_payload",
        "status",
        "started_at",
        "completed_at",
        "error_message",
        "created_at",
        "results",
    } <= listed[0].keys()


@pytest.mark.parametrize("limit", ["0", "101", "-1", "1.5", "ten", "", "²", "9" * 5000])
def test_a_limit_out_of_range_is_refused(server: httpx.Client, limit: str) -> None:
    response = server.get(JOBS, params={"limit": limit})
    assert response.status_code == 400
    assert "limit" in response.json()["error"]


def test_a_job_that_is_not_there_and_an_id_that_is_none(server: httpx.Client) -> None:
    assert server.get(f"{JOBS}/{uuid4()}").status_code == 404
    assert server.get(f"{JOBS}/1").status_code == 404
    assert server.post(f"{JOBS}/{uuid4()}/retry").status_code == 404


def test_retry_is_for_failed_jobs_and_pressing_twice_makes_one(
    server: httpx.Client, query: Query, connection: Connection[Any], database_url: str
) -> None:
    failed = steps.enqueue(connection, matchId=7)
    assert server.post(f"{JOBS}/{failed}/retry").status_code == 409
    with Database(database_url) as database:
        steps.fail(connection, database)
    first, second = (server.post(f"{JOBS}/{failed}/retry") for _ in range(2))
    assert first.status_code == second.status_code == 202
    assert first.json()["jobId"] == second.json()["jobId"] != str(failed)
    job = server.get(f"{JOBS}/{first.json()['jobId']}").json()
    assert (job["status"], job["retry_of"], job["job_payload"]["matchId"]) == ("queued", str(failed), 7)
    assert counts(query) == (2, 1)


def test_cron_makes_one_job_per_day(anyone: httpx.Client, query: Query) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: anyone.get(CRON, headers=CRON_KEY), range(4)))
    assert {response.status_code for response in answers} == {202}
    assert len({response.json()["jobId"] for response in answers}) == 1
    assert counts(query) == (1, 1)
    (row,) = query("select job_payload ->> 'triggeredBy' as trigger from public.background_job_status")
    assert row["trigger"] == "cron"


def test_cron_makes_one_job_per_tenant(serve: Callable[..., Served], query: Query) -> None:
    tenants = [str(steps.TENANT), str(steps.OTHER_TENANT)]
    url = serve(CRON_SECRET=CRON_SECRET, STATS_TENANTS=",".join(tenants)).url
    for _ in range(2):
        answer = httpx.get(url + CRON, headers=CRON_KEY).json()
        assert [job["tenantId"] for job in answer["jobs"]] == tenants
        assert counts(query) == (2, 2)


def test_the_crons_day_is_the_clubs(
    serve: Callable[..., Served], query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half past midnight in London is still yesterday in UTC."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls(2025, 6, 27, 23, 30, tzinfo=UTC).astimezone(tz)

    monkeypatch.setattr(api, "datetime", Clock)
    url = serve(STATS_TIMEZONE="Europe/London", CRON_SECRET=CRON_SECRET).url
    assert httpx.get(url + CRON, headers=CRON_KEY).status_code == 202
    [row] = query("select job_payload from public.background_job_status")
    assert row["job_payload"]["requestId"] == "cron-2025-06-28"
    assert datetime.fromisoformat(row["job_payload"]["timestamp"]) == Clock.now(UTC)


def test_posting_to_the_old_route_says_where_to_go(anyone: httpx.Client, query: Query) -> None:
    response = anyone.post(CRON)
    assert response.status_code == 410
    assert ENQUEUE in response.json()["error"]
    assert counts(query) == (0, 0)


def test_the_enqueue_endpoint_says_whether_it_is_well(anyone: httpx.Client) -> None:
    response = anyone.get(ENQUEUE)
    assert response.status_code == 200
    assert response.json()["status"] == "healthy"


def test_read_only_mode_shows_and_changes_nothing(serve: Callable[..., Served], query: Query) -> None:
    served = serve(STATS_READ_ONLY="true", INTERNAL_API_KEY=API_KEY, CRON_SECRET=CRON_SECRET)
    url = served.url
    assert httpx.get(url + JOBS, headers=KEY).status_code == 200
    refused = [
        httpx.post(url + ENQUEUE, headers=KEY, json={"triggeredBy": "admin", "requestId": "1"}),
        httpx.post(f"{url}{JOBS}/{uuid4()}/retry", headers=KEY),
        httpx.get(url + CRON, headers=CRON_KEY),
    ]
    assert [response.status_code for response in refused] == [403] * 3
    page = httpx.get(url + "/admin/info", headers=served.session()).text
    assert "read-only" in page
    assert "Enqueue Stats Job" not in page
    assert counts(query) == (0, 0)


def test_a_wrong_method_is_told_the_right_ones(server: httpx.Client) -> None:
    response = server.delete(ENQUEUE)
    assert response.status_code == 405
    assert {"GET", "POST"} <= set(response.headers["allow"].split(", "))


def test_without_a_database_the_answer_is_503_and_says_nothing_of_where_it_was(
    serve: Callable[..., Served], postgres: str
) -> None:
    gone = postgres.replace("/postgres?", "/no_such_database?", 1)
    served = serve(gone, INTERNAL_API_KEY=API_KEY)
    url = served.url
    requests = [
        ("POST", ENQUEUE, KEY, {"triggeredBy": "admin", "requestId": "1"}),
        ("GET", ENQUEUE, {}, None),
        ("GET", JOBS, KEY, None),
        ("GET", "/metrics", KEY, None),
        ("GET", "/health", {}, None),
        ("GET", "/admin/info", {"Accept": "text/html"} | served.session(), None),
    ]

    def send(request: tuple[str, str, dict[str, str], Any]) -> httpx.Response:
        method, path, headers, json = request
        return httpx.request(method, url + path, headers=headers, json=json, timeout=30)

    with ThreadPoolExecutor(len(requests)) as pool:
        for response in pool.map(send, requests):
            assert response.status_code == 503
            assert "no_such_database" not in response.text
            assert "postgres" not in response.text


def test_asking_for_the_head_of_the_cron_address_changes_nothing(
    guarded: Served, query: Callable[..., list[dict[str, Any]]]
) -> None:
    asked = httpx.head(f"{guarded.url}{CRON}", headers={"Authorization": f"Bearer {CRON_SECRET}"})
    assert asked.status_code == 405
    assert query("select count(*) from public.background_job_status") == [{"count": 0}]
