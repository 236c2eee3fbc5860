"""Attacks on the door, each with its answer: as it is served, in front of a real Dagster UI with a run, a sensor and a
code server. After each of them everything is as it was.

What our own pages answer is in `test_security.py`, a real browser behind a proxy in `test_proxy.py`.
"""

import json
import socket
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import httpx
import pytest
from dagster_webserver.webserver import DagsterWebserver
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from stats_pipeline import database
from stats_pipeline.jobs import audit
from stats_pipeline.runtime import webserver
from stats_pipeline.web.dagster_ui import MAX_REQUESTS
from stats_pipeline.web.door import SESSION_OVER
from stats_pipeline.web.sessions import Role
from stats_pipeline_tests.acceptance.processes import until
from stats_pipeline_tests.web.conftest import JOBS, PASSWORD, VIEWER_PASSWORD, Served, serving, settings
from stats_pipeline_tests.web.test_security import token
from stats_pipeline_tests.web.toy_dagster import JOB, REPOSITORY, RealDoor, opened, real_door

pytestmark = pytest.mark.slow

ADMIN, VIEWER = Role.ADMIN, Role.VIEWER
GRAPHQL = "/dagster/graphql"
JSON = {"Content-Type": "application/json"}
PAGE = {"Accept": "text/html"}
QUERY = json.dumps({"query": "{ version }"})
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
FRAME = LINK | {"Sec-Fetch-Dest": "iframe"}
IMAGE = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
EVIL = {"Origin": "https://evil.example"}
LAUNCH = "mutation($p: ExecutionParams!) { %s(executionParams: $p) { __typename } }"
SENSOR = REPOSITORY | {"sensorName": "toy_sensor"}
SCHEDULE = REPOSITORY | {"scheduleName": "toy_schedule"}
PARAMS = {"selector": JOB, "runConfigData": {}}


@dataclass(frozen=True)
class Attack:
    """A request, and the answer to it. `{run}` and the like in target and body are real ids."""

    who: Role | None
    method: str
    target: str
    answer: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    to: str = ""  # where a redirect leads
    twice: str = ""  # a header that is sent once more

    def __str__(self) -> str:
        said = " ".join(f"{name}: {value[:30]}" for name, value in self.headers.items())
        return f"{self.who or 'nobody'} {self.method} {self.target[:60]} {said} {self.twice} {self.body[:40]}".strip()


def mutation(query: str, **variables: Any) -> Attack:
    """A viewer who mutates."""
    return Attack(VIEWER, "POST", GRAPHQL, 403, JSON, json.dumps({"query": query, "variables": variables}))


ATTACKS = [
    # Without a session.
    Attack(None, "GET", "/dagster", 401),
    Attack(None, "GET", "/dagster/runs?view=all", 303, PAGE, to="/login?next=%2Fdagster%2Fruns%3Fview%3Dall"),
    Attack(None, "GET", "/dagster/_next/static/x.js", 401),
    Attack(None, "POST", GRAPHQL, 401, JSON, QUERY),
    Attack(None, "GET", GRAPHQL, 401, PAGE),
    Attack(None, "GET", "/dagster/server_info", 401),
    Attack(None, "GET", "/dagster/download_debug/{run}", 401),
    Attack(None, "GET", "/dagster/download_debug/{run}", 401, PAGE),
    Attack(None, "GET", "/dagster/logs/{log}", 401),
    Attack(None, "POST", "/dagster/report_asset_materialization/toy_asset", 401, JSON, "{}"),
    Attack(None, "POST", "/dagster/report_asset_check/toy_asset", 401, JSON, "{}"),
    Attack(None, "POST", "/dagster/report_asset_observation/toy_asset", 401, JSON, "{}"),
    Attack(None, "GET", "/dagster/notebook?path=/etc/passwd.ipynb&repoLocName=toys", 404),
    Attack(None, "GET", "/dagster/runs", 401, {"Cookie": "stats_pipeline_session=WyJhIl0.aaaa.bbbb"}),
    Attack(None, "GET", "/dagster/runs", 401, {"Cookie": "stats_pipeline_session="}),
    Attack(None, "GET", "/dagster/runs", 401, {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1"}),
    Attack(None, "GET", "/dagster/runs", 401, {"Authorization": f"Bearer {PASSWORD}"}),
    # Paths.
    Attack(ADMIN, "GET", "//dagster/runs", 404),
    Attack(ADMIN, "GET", "/./dagster/runs", 404),
    Attack(ADMIN, "GET", "/admin/../dagster/runs", 404),
    Attack(ADMIN, "GET", "/Dagster/runs", 404),
    Attack(ADMIN, "GET", "/dagster;/runs", 404),
    Attack(ADMIN, "GET", "/dagsterx", 404),
    Attack(ADMIN, "GET", "/graphql", 404),
    Attack(ADMIN, "POST", "/graphql", 404, JSON, QUERY),
    Attack(ADMIN, "GET", "/server_info", 404),
    Attack(ADMIN, "GET", "/dagster/../admin/info", 404),
    Attack(ADMIN, "GET", "/dagster/%2e%2e/admin/info", 404),
    Attack(ADMIN, "GET", "/dagster//graphql", 404),
    Attack(ADMIN, "GET", "/dagster%2f%2fgraphql", 404),
    Attack(ADMIN, "GET", "/dagster/logs/../../../../etc/passwd", 404),
    Attack(ADMIN, "GET", "/dagster/logs/..%2f..%2f..%2fetc%2fpasswd", 404),
    Attack(ADMIN, "GET", "/dagster/_next/..%2f..%2fcsp-header.txt", 404),
    Attack(ADMIN, "GET", "/dagster/_next/..%5c..%5ccsp-header.txt", 404),
    Attack(ADMIN, "GET", "/dagster/logs/%00", 404),
    Attack(ADMIN, "GET", "/dagster/%0d%0aSet-Cookie:%20a=b", 404),
    Attack(VIEWER, "GET", "/dagster%2Flogs%2F{log}", 403),
    Attack(VIEWER, "GET", "/%64agster/download_debug/{run}", 403),
    Attack(VIEWER, "GET", "/dagster/%64ownload_debug/{run}", 403),
    Attack(None, "GET", "/%64agster/runs", 401),
    Attack(None, "GET", "/dagster;x=/runs", 404),
    Attack(ADMIN, "GET", "http://127.0.0.1/dagster/runs", 400),
    Attack(ADMIN, "GET", "http://evil.example/dagster/runs", 400),
    Attack(ADMIN, "GET", "http://evil.example/admin/info", 400),
    Attack(None, "GET", "/favicon-run-success.svg/../dagster/runs", 404),
    Attack(None, "POST", "/favicon-run-success.svg", 404),
    Attack(ADMIN, "GET", "/dagster", 303, to="/dagster/"),
    Attack(ADMIN, "GET", "/dagster?x=//evil.example", 303, to="/dagster/?x=//evil.example"),
    # Names.
    Attack(ADMIN, "GET", "/dagster/runs", 421, {"Host": "evil.example"}),
    Attack(ADMIN, "POST", GRAPHQL, 421, JSON | {"Host": "rebound.evil.example:8080"}, QUERY),
    Attack(ADMIN, "GET", "/dagster/runs", 421, {"Host": "127.0.0.1.evil.example"}),
    Attack(ADMIN, "GET", "/dagster/runs", 421, {"Host": "127.0.0.1@evil.example"}),
    Attack(ADMIN, "GET", "/dagster/runs", 421, {"Host": ""}),
    Attack(ADMIN, "GET", "/dagster/runs", 400, twice="Host: evil.example"),
    Attack(ADMIN, "GET", "/dagster/runs", 421, {"Host": "evil.example", "X-Forwarded-Host": "127.0.0.1"}),
    Attack(None, "GET", "/health", 200, {"Host": "evil.example"}),  # a load balancer's own name for us
    # Pages of other sites, with the admin's session.
    Attack(ADMIN, "POST", GRAPHQL, 403, JSON | EVIL, QUERY),
    Attack(ADMIN, "POST", GRAPHQL, 403, JSON | {"Origin": "null"}, QUERY),
    Attack(ADMIN, "POST", GRAPHQL, 403, JSON | {"Origin": "http://127.0.0.1:1"}, QUERY),
    Attack(ADMIN, "POST", GRAPHQL, 403, JSON | {"Sec-Fetch-Site": "same-site"}, QUERY),
    Attack(ADMIN, "POST", GRAPHQL, 403, JSON | {"Sec-Fetch-Site": "cross-site"}, QUERY),
    Attack(ADMIN, "POST", GRAPHQL, 415, {"Content-Type": "text/plain"}, QUERY),
    Attack(ADMIN, "POST", GRAPHQL, 415, {"Content-Type": "application/x-www-form-urlencoded"}, "query={version}"),
    Attack(ADMIN, "POST", GRAPHQL, 415, {"Content-Type": "text/plain;application/json"}, QUERY),
    Attack(ADMIN, "POST", GRAPHQL, 415, {}, QUERY),
    Attack(ADMIN, "POST", f"{GRAPHQL}?query=mutation%7BsetNuxSeen%7D", 415),
    Attack(ADMIN, "GET", f"{GRAPHQL}?query=mutation%7BsetNuxSeen%7D", 405),
    Attack(ADMIN, "GET", f"{GRAPHQL}?query=mutation%7BsetNuxSeen%7D", 405, PAGE | LINK),
    Attack(ADMIN, "GET", GRAPHQL, 403, PAGE | LINK),
    Attack(ADMIN, "GET", f"{GRAPHQL}?query=mutation%7BsetNuxSeen%7D", 405, PAGE),
    Attack(ADMIN, "GET", "/dagster/logs/{log}", 403, IMAGE),
    Attack(ADMIN, "GET", "/dagster/download_debug/{run}", 403, LINK),
    Attack(ADMIN, "GET", "/dagster/runs", 403, FRAME),
    Attack(ADMIN, "GET", "/dagster/runs", 403, IMAGE),
    Attack(ADMIN, "POST", "/dagster/report_asset_materialization/toy_asset", 403, JSON | EVIL, "{}"),
    Attack(ADMIN, "POST", "/dagster/report_asset_materialization/toy_asset", 415, {"Content-Type": "text/plain"}, "{}"),
    Attack(ADMIN, "GET", "/dagster/report_asset_materialization/toy_asset", 405),
    # Methods.
    Attack(ADMIN, "HEAD", GRAPHQL, 405),
    Attack(ADMIN, "PUT", GRAPHQL, 405, JSON, QUERY),
    Attack(ADMIN, "GET", GRAPHQL, 405, {"Accept": "*/*"}),
    Attack(ADMIN, "POST", "/dagster/runs", 405, JSON, "{}"),
    Attack(ADMIN, "OPTIONS", GRAPHQL, 405, EVIL | {"Access-Control-Request-Method": "POST"}),
    Attack(ADMIN, "TRACE", "/dagster/runs", 405),
    Attack(ADMIN, "GET", "/dagster/notebook?path=a.ipynb&repoLocName=toys", 404),
    Attack(ADMIN, "GET", "/dagster/dagit/notebook?path=a.ipynb&repoLocName=toys", 404),
    # Sizes.
    Attack(ADMIN, "GET", "/dagster/runs", 400, {"X-Long": "x" * 500_000}),
    Attack(ADMIN, "GET", "/dagster/runs?" + "x" * 500_000, 400),
    Attack(VIEWER, "POST", GRAPHQL, 413, JSON, json.dumps({"query": "{ version }", "x": "x" * 270_000})),
    Attack(VIEWER, "POST", GRAPHQL, 400, JSON, json.dumps({"query": "{a" * 20_000})),
    Attack(VIEWER, "POST", GRAPHQL, 400, JSON, json.dumps({"query": "{" + "a " * 100_000 + "}"})),  # long to parse
    # A mutation of which the record would not tell the name.
    Attack(VIEWER, "POST", GRAPHQL, 400, JSON,
        json.dumps({"query": "fragment F on Mutation { setNuxSeen } mutation { ...F }"})),
    Attack(ADMIN, "POST", GRAPHQL, 400, JSON, json.dumps({"query": "mutation { ... on Mutation { setNuxSeen } }"})),
    Attack(ADMIN, "POST", GRAPHQL, 400, JSON, json.dumps({"query": "mutation { " + "x: setNuxSeen " * 6 + "}"})),
    Attack(VIEWER, "POST", GRAPHQL, 403, JSON, json.dumps({"query": "mutation { __typename setNuxSeen }"})),
    # A viewer.
    Attack(VIEWER, "GET", "/dagster/download_debug/{run}", 403),
    Attack(VIEWER, "GET", "/dagster/logs/{log}", 403),
    Attack(VIEWER, "POST", "/dagster/report_asset_materialization/toy_asset", 403, JSON, "{}"),
    Attack(VIEWER, "POST", "/dagster/report_asset_check/toy_asset", 403, JSON, "{}"),
    mutation(LAUNCH % "launchRun", p=PARAMS),
    mutation(LAUNCH % "launchPipelineExecution", p=PARAMS),
    mutation("mutation($p: [ExecutionParams!]!) { launchMultipleRuns(executionParamsList: $p) { __typename } }", p=[]),
    mutation(
        "mutation($p: ReexecutionParams!) { launchRunReexecution(reexecutionParams: $p) { __typename } }",
        p={"parentRunId": "{run}", "strategy": "ALL_STEPS"},
    ),
    mutation("mutation { stopSensor(id: \"{sensor}\") { __typename } }"),
    mutation("mutation($s: SensorSelector!) { startSensor(sensorSelector: $s) { __typename } }", s=SENSOR),
    mutation("mutation($s: SensorSelector!) { setSensorCursor(sensorSelector: $s) { __typename } }", s=SENSOR),
    mutation("mutation($s: SensorSelector!) { sensorDryRun(selectorData: $s) { __typename } }", s=SENSOR),
    mutation("mutation($s: ScheduleSelector!) { startSchedule(scheduleSelector: $s) { __typename } }", s=SCHEDULE),
    mutation("mutation($s: ScheduleSelector!) { scheduleDryRun(selectorData: $s) { __typename } }", s=SCHEDULE),
    mutation("mutation { terminateRun(runId: \"{run}\") { __typename } }"),
    mutation("mutation { terminateRun(runId: \"{run}\", terminatePolicy: MARK_AS_CANCELED_IMMEDIATELY) {__typename} }"),
    mutation("mutation { terminateRuns(runIds: [\"{run}\"]) { __typename } }"),
    mutation("mutation { deleteRun(runId: \"{run}\") { __typename } }"),
    mutation("mutation { deletePipelineRun(runId: \"{run}\") { __typename } }"),
    mutation("mutation { shutdownRepositoryLocation(repositoryLocationName: \"toys\") { __typename } }"),
    mutation("mutation { reloadRepositoryLocation(repositoryLocationName: \"toys\") { __typename } }"),
    mutation("mutation { setConcurrencyLimit(concurrencyKey: \"a\", limit: 0) }"),
    mutation("mutation { setNuxSeen }"),
    mutation("{ version } mutation Hidden { setNuxSeen }"),
]  # fmt: skip


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory, shared_database: str) -> Iterator[RealDoor]:
    """The door, its Dagster UI open, and a run that waits."""
    home = tmp_path_factory.mktemp("door")
    with real_door(home, shared_database) as started:
        yield opened(started)


@pytest.fixture(scope="module")
def ids(door: RealDoor) -> Iterator[dict[str, str]]:
    """The ids of what there is to attack. At the end of all attacks it is as it was."""
    gate = door.home / "gate"
    run = door.launch(gate)
    door.wait_for(run, "STARTED")
    sensor = "query($s: SensorSelector!) { sensorOrError(sensorSelector: $s) { ... on Sensor { id } } }"
    found = {"run": run, "sensor": door.ask(sensor, s=SENSOR)["sensorOrError"]["id"]}
    log = until(lambda: next((door.home / "storage" / run / "compute_logs").glob("*.out"), None), "the run's log")
    found["log"] = f"{run}/compute_logs/{log.stem}/out"
    yield found
    gate.touch()
    door.wait_for(run, "SUCCESS")


STATE = """query($sensor: SensorSelector!, $schedule: ScheduleSelector!) {
    runsOrError { ... on Runs { results { runId status } } }
    sensorOrError(sensorSelector: $sensor) { ... on Sensor { sensorState { status } } }
    scheduleOrError(scheduleSelector: $schedule) { ... on Schedule { scheduleState { status } } }
    assetsOrError { ... on AssetConnection { nodes { key { path } } } }
    workspaceOrError { ... on Workspace { locationEntries { loadStatus updatedTimestamp } } }
    instance { concurrencyLimits { concurrencyKey } } }"""


def state(door: RealDoor) -> Any:
    return door.ask(STATE, sensor=SENSOR, schedule=SCHEDULE)


def test_there_are_enough_of_them() -> None:
    assert len({str(attack) for attack in ATTACKS}) >= 100


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_it_is_answered_and_changes_nothing(door: RealDoor, ids: dict[str, str], attack: Attack) -> None:
    before = state(door)
    status, headers, body = send(door.served, attack, ids)
    assert status == attack.answer, body
    assert headers.get("location", "") == attack.to
    assert status in (303, 404) or len(body) < 1000
    assert "set-cookie" not in headers
    assert state(door) == before


def send(served: Served, attack: Attack, ids: Mapping[str, str]) -> tuple[int, dict[str, str], str]:
    """Send it, byte for byte; no client of HTTP would send some of them."""

    def filled(text: str) -> str:
        for name, value in ids.items():
            text = text.replace(f"{{{name}}}", value)
        return text

    given = {
        "Host": served.host,
        "Connection": "close",
        **(served.session(attack.who) if attack.who else {}),
        **attack.headers,
    }
    body = filled(attack.body).encode()
    lines = [
        f"{attack.method} {filled(attack.target)} HTTP/1.1",
        *(f"{name}: {value}" for name, value in given.items()),
    ]
    lines += [attack.twice] * bool(attack.twice) + [f"Content-Length: {len(body)}", "", ""]
    host, _, port = served.host.partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        with suppress(ConnectionError):  # refused before all was read
            connection.sendall("\r\n".join(lines).encode("latin-1") + body)
        try:
            head, _, answer = connection.makefile("rb").read().partition(b"\r\n\r\n")
        except ConnectionError:  # cut off, before the answer could be read
            return HTTPStatus.BAD_REQUEST, {}, ""
    first, *rest = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
    return int(first.split()[1]), headers, answer.decode("utf-8", "replace")


def test_what_the_roles_may_do_works(door: RealDoor, ids: dict[str, str]) -> None:
    with door.client(door.served.session(VIEWER)) as viewer, door.client(door.served.session()) as admin:
        for client in (viewer, admin):
            page = client.get("/dagster/runs", headers=PAGE)
            assert page.status_code == 200
            assert len(page.headers.get_list("content-security-policy")) == 2
            assert page.headers["x-frame-options"] == "DENY"
            assert "nonce-" in page.headers["content-security-policy"]
            assert "GraphiQL" in client.get(GRAPHQL, headers=PAGE).text
            assert client.post(GRAPHQL, json={"query": "{ version }"}).json()["data"]["version"]
            assert client.get("/dagster/runs", headers=LINK).status_code == 200
        assert admin.get(f"/dagster/logs/{ids['log']}").text == "printed at the gate\n"
        assert admin.get(f"/dagster/download_debug/{ids['run']}").content.startswith(b"\x1f\x8b")
        permissions = {"query": "{ permissions { permission value } }"}
        for client, values in ((viewer, {False}), (admin, {True, False})):
            found = client.post(GRAPHQL, json=permissions).json()["data"]["permissions"]
            assert {permission["value"] for permission in found} == values
    assert httpx.get(f"{door.url}/favicon-run-success.svg").headers["content-type"] == "image/svg+xml"


def test_an_admin_may_report(door: RealDoor) -> None:
    with door.client(door.served.session() | {"Origin": door.url}) as admin:
        assert admin.post("/dagster/report_asset_materialization/reported", json={}).status_code == 200
    assert "reported" in str(state(door)["assetsOrError"])


@contextmanager
def another_door(door: RealDoor, database_url: str, **variables: str) -> Iterator[Served]:
    """A door with other settings in front of the same Dagster UI."""
    chosen = settings(**{"ADMIN_PASSWORD": PASSWORD, "VIEWER_PASSWORD": VIEWER_PASSWORD} | variables)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(door.ui, "close", lambda: None)
        with serving(chosen, database_url, door.ui) as served:
            yield served


def test_in_read_only_mode_the_admin_only_looks_too(door: RealDoor, shared_database: str) -> None:
    with (
        another_door(door, shared_database, STATS_READ_ONLY="true") as served,
        httpx.Client(base_url=served.url, headers=served.session(), timeout=30) as admin,
    ):
        assert admin.get("/dagster/runs").status_code == 200
        assert admin.post(GRAPHQL, json={"query": "mutation { setNuxSeen }"}).status_code == 403
        assert admin.post("/dagster/report_asset_materialization/a", json={}).status_code == 403


def test_a_changed_password_ends_the_viewers_session(door: RealDoor, shared_database: str) -> None:
    with another_door(door, shared_database, VIEWER_PASSWORD=VIEWER_PASSWORD + "!") as served:
        for role, answer in ((VIEWER, 401), (ADMIN, 200)):
            cookie = door.served.session(role)
            assert httpx.get(f"{served.url}/dagster/runs", headers=cookie, timeout=30).status_code == answer


# WebSockets.


@contextmanager
def web_socket(door: RealDoor, headers: Mapping[str, str], origin: Origin | None = None) -> Iterator[ClientConnection]:
    address = door.url.replace("http:", "ws:") + GRAPHQL
    protocols = [Subprotocol("graphql-ws")]
    with connect(address, subprotocols=protocols, additional_headers=headers, origin=origin) as connection:
        yield connection


@pytest.mark.parametrize(
    ("who", "path", "headers", "answer"),
    [
        (None, GRAPHQL, {}, 401),
        (None, GRAPHQL, {"Cookie": "stats_pipeline_session=forged"}, 401),
        (ADMIN, GRAPHQL, {"Host": "evil.example"}, 421),
        (ADMIN, GRAPHQL, {"Sec-Fetch-Site": "same-site"}, 403),
        (ADMIN, GRAPHQL, EVIL, 403),
        (ADMIN, GRAPHQL, {"Origin": "null"}, 403),
        (ADMIN, GRAPHQL, {"Origin": "http://127.0.0.1:1"}, 403),
        (ADMIN, "/graphql", {}, 404),
        (ADMIN, "/dagster/runs", {}, 404),
        (ADMIN, "/dagster//graphql", {}, 404),
        (ADMIN, JOBS + "/stream", {}, 404),
    ],
)
def test_a_web_socket_is_refused_before_it_is_one(
    door: RealDoor,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    who: Role | None,
    path: str,
    headers: dict[str, str],
    answer: int,
) -> None:
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol": "graphql-ws",
    }
    assert send(door.served, Attack(who, "GET", path, answer, handshake | headers), {})[0] == answer
    assert "handshake" not in caplog.text + "".join(capfd.readouterr())


def acknowledged(connection: ClientConnection) -> ClientConnection:
    connection.send(json.dumps({"type": "connection_init"}))
    assert json.loads(connection.recv(timeout=10))["type"] == "connection_ack"
    return connection


@pytest.mark.parametrize("role", [ADMIN, VIEWER])
def test_a_web_socket_of_an_own_page_works_and_takes_no_mutation(door: RealDoor, role: Role) -> None:
    with web_socket(door, door.served.session(role), origin=Origin(door.url)) as connection:
        acknowledged(connection).send(
            json.dumps({"type": "start", "id": "1", "payload": {"query": "mutation { setNuxSeen }"}})
        )
        assert json.loads(connection.recv(timeout=10))["type"] == "error"


def test_a_logout_ends_web_sockets_and_streams_of_the_session_and_no_others(door: RealDoor) -> None:
    with httpx.Client(base_url=door.url, timeout=30) as viewer:
        assert viewer.post("/login", data={"password": VIEWER_PASSWORD}).status_code == 303
        cookie = {"Cookie": "; ".join(f"{name}={value}" for name, value in viewer.cookies.items())}
        with (
            web_socket(door, cookie) as ended,
            web_socket(door, door.served.session(VIEWER)) as other,
            viewer.stream("GET", f"{JOBS}/stream") as stream,
        ):
            acknowledged(ended)
            acknowledged(other)
            answer = httpx.post(f"{door.url}/logout", data={"token": token(viewer)}, headers=cookie)
            assert answer.headers["clear-site-data"] == '"cache", "storage"'
            with pytest.raises(ConnectionClosed) as closed:
                ended.recv(timeout=3)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == SESSION_OVER
            for _ in stream.iter_lines():  # to its end
                pass
            acknowledged(other)
        assert viewer.get("/dagster/runs").status_code == 401
        with pytest.raises(InvalidStatus), web_socket(door, cookie):
            pass


@pytest.mark.parametrize("how", ["logged out elsewhere", "expired"])
def test_so_does_an_end_of_the_session_elsewhere(
    door: RealDoor, shared_database: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    cookie = door.served.session()
    with web_socket(door, cookie) as ended, httpx.Client(headers=cookie, timeout=30) as client:
        acknowledged(ended)
        with client.stream("GET", f"{door.url}{JOBS}/stream") as stream:
            if how == "expired":
                monkeypatch.setattr("stats_pipeline.web.sessions.time.time", lambda: 2.0**32)
            else:
                elsewhere = settings(ADMIN_PASSWORD=PASSWORD)
                with serving(elsewhere, shared_database) as other, httpx.Client(base_url=other.url) as leaving:
                    leaving.headers.update(cookie)
                    assert leaving.post("/logout", data={"token": token(leaving)}).status_code == 303
            with pytest.raises(ConnectionClosed):
                ended.recv(timeout=5)
            for _ in stream.iter_lines():
                pass


# Dagster.


def test_the_addresses_of_dagsters_app_are_those_that_the_door_knows() -> None:
    """A new one must be looked at: who may ask for it, and how?"""
    app: Any = DagsterWebserver.__new__(DagsterWebserver)
    app._app_path_prefix = ""
    files = {route.path for route in app.build_static_routes()}
    found = {route.path.partition("{")[0] for route in app.build_routes() if route.path not in files}
    assert found - {"/"} == set(webserver.ADDRESSES)
    assert {file for file in files if file.startswith("/favicon-run-")} == webserver.FILES_AT_THE_ROOT


def test_what_an_admin_changes_in_the_dagster_ui_is_recorded(door: RealDoor, shared_database: str) -> None:
    """Looking at something is not; and what a viewer tries is refused, so it changes nothing."""
    with database.connect(shared_database, autocommit=True) as connection:
        connection.execute("truncate stats_pipeline.audit")
        gate = door.home / "recorded"
        run = door.launch(gate)
        door.wait_for(run, "STARTED")
        door.ask("mutation($id: String!) { terminateRun(runId: $id) { __typename } }", id=run)
        door.wait_for(run, "CANCELED")
        door.ask("mutation($id: String!) { deletePipelineRun(runId: $id) { __typename } }", id=run)
        door.ask("mutation { setNuxSeen }")
        assert [(row.action, row.outcome, row.who, row.role, row.about) for row in audit.latest(connection, 9)] == [
            ("change", "done", "admin", "admin", "deletePipelineRun in the Dagster UI"),
            ("cancel", "done", "admin", "admin", "terminateRun in the Dagster UI"),
            ("launch", "done", "admin", "admin", "launchRun in the Dagster UI"),
        ]


def test_who_sends_or_reads_slowly_keeps_no_turn(door: RealDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    """More viewers than there are turns each begin a query and do not end it."""
    cookie = door.served.session(Role.VIEWER)["Cookie"]
    head = f"POST {GRAPHQL} HTTP/1.1\r\nHost: {door.url.removeprefix('http://')}\r\nCookie: {cookie}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    with ExitStack() as trickling:
        for _ in range(MAX_REQUESTS + 2):
            connection = trickling.enter_context(socket.create_connection(("127.0.0.1", httpx.URL(door.url).port)))
            connection.sendall(head.encode())
        began = time.monotonic()
        assert door.ask("{ version }")["version"]
        assert time.monotonic() - began < 5


def test_a_long_query_keeps_nobody_waiting(door: RealDoor) -> None:
    long = {"query": "{" + "a " * 100_000 + "}"}
    with ThreadPoolExecutor(4) as pool, door.client(door.served.session(Role.VIEWER)) as viewer:
        refused = [pool.submit(viewer.post, GRAPHQL, json=long) for _ in range(4)]
        began = time.monotonic()
        assert httpx.get(f"{door.url}/health").status_code == 200
        assert time.monotonic() - began < 3
        assert {answer.result().status_code for answer in refused} == {400}
