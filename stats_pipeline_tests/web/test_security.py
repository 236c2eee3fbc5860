"""Who has access, and the answers to all others. After every rejection the database holds no job and no message."""

import http.client
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from ipaddress import ip_network
from typing import Any
from uuid import uuid4

import httpx
import pytest

from stats_pipeline.web.address import login_key
from stats_pipeline.web.auth import COOKIE, MAX_FAILURES
from stats_pipeline.web.sessions import Role
from stats_pipeline_tests.web.conftest import (
    API_KEY,
    CRON,
    CRON_SECRET,
    ENQUEUE,
    JOBS,
    KEY,
    PASSWORD,
    START_KEY,
    VIEWER_PASSWORD,
    Served,
    serving,
    settings,
)

Query = Callable[..., list[dict[str, Any]]]
PAYLOAD = {"triggeredBy": "admin", "requestId": "1"}
HTML = {"Accept": "text/html"}
addresses = ip_network("198.18.0.0/15").hosts()


pytestmark = pytest.mark.usefixtures("nothing_is_enqueued")


def log_in(client: httpx.Client, password: str = PASSWORD, **headers: str) -> httpx.Response:
    """By default from an address of its own: logins of one are limited."""
    return client.post("/login", data={"password": password}, headers=from_elsewhere({}) | headers)


@pytest.fixture
def admin(guarded: Served) -> Iterator[httpx.Client]:
    """A browser of the admin's, logged in."""
    with httpx.Client(base_url=guarded.url, timeout=20) as client:
        assert log_in(client).status_code == 303
        yield client


def from_elsewhere(headers: dict[str, str]) -> dict[str, str]:
    """The headers of a caller at an address of its own, as a proxy on this machine reports it."""
    return headers | {"X-Forwarded-For": str(next(addresses))}


def token(client: httpx.Client) -> str:
    """The token of the forms on the admin's page."""
    found = re.search(r'name="token" value="([^"]+)"', client.get("/admin/info").text)
    assert found is not None
    return found[1]


# Keys.


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        f"Bearer {API_KEY}x",
        f"Bearer {API_KEY[:-1]}",
        f"Bearer  {API_KEY}",
        f"Basic {API_KEY}",
        API_KEY,
        f"Bearer {CRON_SECRET}",
        f"Bearer {PASSWORD}",
    ],
)
def test_without_the_key_nothing_is_read_or_enqueued(anyone: httpx.Client, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    for response in (
        anyone.post(ENQUEUE, json=PAYLOAD, headers=from_elsewhere(headers)),
        anyone.post(f"{JOBS}/{uuid4()}/retry", headers=from_elsewhere(headers)),
        anyone.get(JOBS, headers=from_elsewhere(headers)),
        anyone.get(f"{JOBS}/{uuid4()}", headers=from_elsewhere(headers)),
        anyone.get(f"{JOBS}/stream", headers=from_elsewhere(headers)),
        anyone.get("/metrics", headers=from_elsewhere(headers)),
    ):
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert API_KEY not in response.text


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", f"Bearer {API_KEY}", "Bearer undefined"])
def test_cron_needs_its_own_secret(anyone: httpx.Client, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    assert anyone.get(CRON, headers=from_elsewhere(headers)).status_code == 401


@pytest.mark.parametrize("authorization", ["Bearer", "Bearer None", "Bearer undefined"])
def test_a_secret_that_is_not_set_is_matched_by_nothing(serve: Callable[..., Served], authorization: str) -> None:
    url = serve().url
    headers = {"Authorization": authorization}
    assert httpx.get(url + CRON, headers=headers).status_code == 503
    assert httpx.post(url + ENQUEUE, headers=headers, json=PAYLOAD).status_code == 401


# Text.


@pytest.mark.usefixtures("enqueues")
def test_text_that_would_be_sql_or_html_is_only_text(admin: httpx.Client, server: httpx.Client, query: Query) -> None:
    hostile = "'); drop table public.background_job_status; --<script>alert(1)</script>"
    response = server.post(ENQUEUE, json={"triggeredBy": "admin", "requestId": hostile, "userId": hostile})
    assert response.status_code == 202
    query(
        "insert into public.background_job_status (job_payload, status, error_message) values (%s, 'failed', %s)",
        '{"triggeredBy": "<script>alert(2)</script>", "matchId": "<b>"}',
        hostile,
    )
    page = admin.get("/admin/info").text
    assert "&lt;script&gt;alert(2)" in page
    assert re.findall(r"<script(?! src=)", page) == []
    assert server.get(f"{JOBS}/{hostile}").status_code == 404
    assert server.get(JOBS, params={"limit": hostile}).status_code == 400


# Sessions.


def test_a_session_is_signed_and_kept_from_scripts_and_other_sites(anyone: httpx.Client, admin: httpx.Client) -> None:
    cookie = log_in(anyone).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Secure" not in cookie  # this is plain http
    assert "Secure" in log_in(anyone, **{"X-Forwarded-Proto": "https"}).headers["set-cookie"]
    assert PASSWORD not in cookie

    value = admin.cookies[COOKIE]
    for forged in (value[:-1], value[::-1], "a" + value, "", "1.2.3"):
        response = anyone.get(JOBS, headers={"Cookie": f"{COOKIE}={forged}"})
        assert response.status_code == 401


def test_the_page_sends_strangers_to_the_login_and_the_password_lets_them_in(anyone: httpx.Client) -> None:
    response = anyone.get("/admin/info", headers=HTML)
    assert (response.status_code, response.headers["location"]) == (303, "/login")
    assert anyone.get("/admin/info/jobs").status_code == 401

    wrong = log_in(anyone, "letmein")
    assert wrong.status_code == 401
    assert "Wrong password" in wrong.text

    assert log_in(anyone).headers["location"] == "/admin/info"
    assert "Background Job Status" in anyone.get("/admin/info").text


def test_changing_the_password_ends_all_sessions_and_restarting_ends_none(
    serve: Callable[..., Served], admin: httpx.Client
) -> None:
    same, other = serve(ADMIN_PASSWORD=PASSWORD), serve(ADMIN_PASSWORD=PASSWORD + "!")
    cookie = {"Cookie": f"{COOKIE}={admin.cookies[COOKIE]}"}
    assert httpx.get(same.url + JOBS, headers=cookie).status_code == 200
    assert httpx.get(other.url + JOBS, headers=cookie).status_code == 401


def test_a_session_ends_by_itself(
    serve: Callable[..., Served], admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve(ADMIN_PASSWORD=PASSWORD, STATS_SESSION_HOURS=1).url
    cookie = {"Cookie": f"{COOKIE}={admin.cookies[COOKIE]}"}
    assert httpx.get(url + JOBS, headers=cookie).status_code == 200
    monkeypatch.setattr("itsdangerous.timed.time.time", lambda: 2**32)
    assert httpx.get(url + JOBS, headers=cookie).status_code == 401


def test_logging_out_forgets_the_session(admin: httpx.Client) -> None:
    assert admin.post("/logout", data={"token": "wrong"}).status_code == 403
    assert admin.post("/logout", data={"token": token(admin)}).headers["location"] == "/login"
    assert admin.get("/admin/info", headers=HTML).status_code == 303


def test_too_many_wrong_passwords_close_the_login_for_that_address_only(anyone: httpx.Client) -> None:
    attacker = {"X-Forwarded-For": "2001:db8:1:2::7"}  # as a proxy on this machine reports it
    neighbour = {"X-Forwarded-For": "2001:db8:1:2::8"}
    for number in range(MAX_FAILURES):
        assert log_in(anyone, f"guess {number}", **attacker).status_code == 401
    for headers in (attacker, neighbour):  # one subscriber
        refused = log_in(anyone, PASSWORD, **headers)
        assert refused.status_code == 429
        assert 0 < int(refused.headers["retry-after"]) <= 301
    assert log_in(anyone, **{"X-Forwarded-For": "192.0.2.1"}).status_code == 303


# Other sites.


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1"},
    ],
)
def test_another_sites_page_can_do_nothing_with_the_admins_session(
    admin: httpx.Client, headers: dict[str, str]
) -> None:
    form = {"token": token(admin), "requestId": "1", "job": str(uuid4())}
    for response in (
        admin.post(ENQUEUE, json=PAYLOAD, headers=headers),
        admin.post(f"{JOBS}/{uuid4()}/retry", headers=headers),
        admin.post("/admin/info/enqueue", data=form, headers=headers),
        admin.post("/admin/info/retry", data=form, headers=headers),
        admin.post("/login", data={"password": PASSWORD}, headers=headers),
        admin.post("/logout", data=form, headers=headers),
    ):
        assert response.status_code == 403


def test_a_form_needs_the_token_of_this_session(admin: httpx.Client, serve: Callable[..., Served]) -> None:
    other = serve(ADMIN_PASSWORD=PASSWORD)
    with httpx.Client(base_url=other.url) as somebody:
        log_in(somebody)
        their_token = token(somebody)
    for value in (None, "", "wrong", their_token, "\udcff".encode("utf-8", "surrogateescape").decode("latin-1")):
        form = {"requestId": "1", "job": str(uuid4())} | ({} if value is None else {"token": value})
        assert admin.post("/admin/info/enqueue", data=form).status_code == 403
        assert admin.post("/admin/info/retry", data=form).status_code == 403


@pytest.mark.usefixtures("enqueues")
def test_the_forms_work_without_javascript_and_sent_twice_make_one_job(admin: httpx.Client, query: Query) -> None:
    form = {"token": token(admin), "requestId": "from the form"}
    first, second = (admin.post("/admin/info/enqueue", data=form) for _ in range(2))
    assert first.status_code == 303
    assert first.headers["location"] == second.headers["location"]
    assert "Job Queued..." in admin.get(first.headers["location"]).text
    query("update public.background_job_status set status = 'failed'")
    (row,) = query("select id from public.background_job_status")
    assert admin.post("/admin/info/retry", data={**form, "job": str(row["id"])}).status_code == 303
    assert query("select count(*) as n from public.background_job_status where retry_of is not null") == [{"n": 1}]
    assert admin.post("/admin/info/retry", data={**form, "job": "1"}).status_code == 400


# Without a password.


def raw(served: Served, method: str, path: str, headers: dict[str, str]) -> int:
    """A request whose Host header is the caller's own."""
    with closing(http.client.HTTPConnection(served.host, timeout=20)) as connection:
        connection.request(method, path, body=b'{"triggeredBy": "admin", "requestId": "1"}', headers=headers)
        with connection.getresponse() as response:
            response.read()
            return response.status


def test_without_a_password_this_machine_is_nobody(local: Served) -> None:
    for headers in ({}, {"Authorization": "Bearer"}, {"Authorization": f"Bearer {API_KEY}"}):
        refused = httpx.post(local.url + ENQUEUE, json=PAYLOAD, headers=headers)
        assert refused.status_code == 401
        assert ("INTERNAL_API_KEY is not set: this API takes no server's call" in refused.text) == bool(headers)
    assert httpx.get(local.url + JOBS).status_code == 401
    assert httpx.get(local.url + "/admin/info").headers["location"] == "/login"
    assert "Open the login link" in httpx.get(local.url + "/login").text


@pytest.mark.parametrize("given", [{}, {"password": ""}, {"key": ""}, {"key": "0" * 64}, {"password": "None"}])
def test_without_a_password_nothing_but_the_link_lets_in(serve: Callable[..., Served], given: dict[str, str]) -> None:
    refused = httpx.post(f"{serve().url}/login", data=given or {"other": "1"})
    assert refused.status_code == 401
    assert COOKIE not in refused.cookies


def test_the_login_link_works_once_also_at_the_door_that_is_started_next(
    database_url: str, query: Query, capfd: pytest.CaptureFixture[str]
) -> None:
    link = {"key": login_key(START_KEY)}
    with serving(settings(), database_url) as served:
        first = httpx.post(f"{served.url}/login", data=link)
        assert first.status_code == 303
        session = {"Cookie": f"{COOKIE}={first.cookies[COOKIE]}"}
        again = httpx.post(f"{served.url}/login", data=link)
        assert again.status_code == 401
        assert "restart" in again.text
    with serving(settings(), database_url) as served:  # the same start
        assert httpx.get(served.url + JOBS, headers=session).status_code == 200
        assert httpx.post(f"{served.url}/login", data=link).status_code == 401
        assert "ADMIN_PASSWORD" in httpx.get(f"{served.url}/login", params=link).text
    (row,) = query("select session, expires_at > now() + interval '5 years' as long from stats_pipeline.ended_session")
    assert row["long"]
    assert link["key"] not in row["session"] + "".join(capfd.readouterr())


def test_of_many_who_use_the_link_at_once_one_gets_in(serve: Callable[..., Served]) -> None:
    servers = [serve(), serve()]

    def use(number: int) -> int:
        return httpx.post(f"{servers[number % 2].url}/login", data={"key": login_key(START_KEY)}).status_code

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(use, range(8)))
    assert answers.count(303) == 1
    assert set(answers) <= {303, 401, 429}


def test_a_link_of_another_start_lets_nobody_in_and_its_sessions_are_over(serve: Callable[..., Served]) -> None:
    served = serve()
    assert httpx.post(f"{served.url}/login", data={"key": login_key(bytes(31) + b"1")}).status_code == 401
    with_password = serve(ADMIN_PASSWORD=PASSWORD)
    assert httpx.post(f"{with_password.url}/login", data={"key": login_key(START_KEY)}).status_code == 401
    assert httpx.get(with_password.url + JOBS, headers=served.session()).status_code == 401


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_another_sites_page_cannot_use_the_link(serve: Callable[..., Served], headers: dict[str, str]) -> None:
    served = serve()
    form = {"key": login_key(START_KEY)}
    assert httpx.post(f"{served.url}/login", data=form, headers=headers).status_code == 403
    assert httpx.post(f"{served.url}/login", data=form).status_code == 303


# The viewer.


def test_a_viewer_sees_everything_and_changes_nothing(serve: Callable[..., Served], connection: Any) -> None:
    served = serve(ADMIN_PASSWORD=PASSWORD, VIEWER_PASSWORD=VIEWER_PASSWORD, INTERNAL_API_KEY=API_KEY)
    with httpx.Client(base_url=served.url, timeout=20) as viewer:
        assert log_in(viewer, VIEWER_PASSWORD).status_code == 303
        page = viewer.get("/admin/info")
        assert "Logged in as viewer" in page.text
        assert "Log out" in page.text
        assert re.findall(r'action="([^"]+)"', page.text) == ["/logout"]
        for path in (JOBS, "/admin/info/jobs", "/metrics", "/docs"):
            assert viewer.get(path).status_code == 200
        with viewer.stream("GET", f"{JOBS}/stream") as stream:
            assert stream.status_code == 200
        form = {"token": token(viewer), "requestId": "1", "job": str(uuid4())}
        for refused in (
            viewer.post(ENQUEUE, json=PAYLOAD),
            viewer.post(f"{JOBS}/{uuid4()}/retry"),
            viewer.post("/admin/info/enqueue", data=form),
            viewer.post("/admin/info/retry", data=form),
        ):
            assert refused.status_code == 403
            assert "a viewer may look at everything here, and change nothing" in refused.text
        assert viewer.post("/logout", data=form).status_code == 303
        assert viewer.get(JOBS).status_code == 401


def test_each_password_proves_its_own_role_and_ends_only_its_own_sessions(serve: Callable[..., Served]) -> None:
    before = serve(ADMIN_PASSWORD=PASSWORD, VIEWER_PASSWORD=VIEWER_PASSWORD)
    after = serve(ADMIN_PASSWORD=PASSWORD, VIEWER_PASSWORD=VIEWER_PASSWORD + "!")
    swapped = serve(ADMIN_PASSWORD=VIEWER_PASSWORD, VIEWER_PASSWORD=PASSWORD)
    admin, viewer = before.session(Role.ADMIN), before.session(Role.VIEWER)
    assert [httpx.get(after.url + JOBS, headers=session).status_code for session in (admin, viewer)] == [200, 401]
    assert [httpx.get(swapped.url + JOBS, headers=session).status_code for session in (admin, viewer)] == [401, 401]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("/dagster/runs/1?selection=a%20b&x=1", "/dagster/runs/1?selection=a%20b&x=1"),
        ("/dagster", "/dagster"),
        ("/dagsterx", "/admin/info"),
        ("//evil.example", "/admin/info"),
        ("https://evil.example/dagster/", "/admin/info"),
        ("/dagster/\\evil.example", "/admin/info"),
        ("/dagster/\r\nSet-Cookie: a=b", "/admin/info"),
    ],
)
def test_after_the_login_comes_the_page_that_was_asked_for(anyone: httpx.Client, wanted: str, expected: str) -> None:
    answer = anyone.post("/login", data={"password": PASSWORD, "next": wanted})
    assert (answer.status_code, answer.headers["location"]) == (303, expected)
    assert len(answer.headers.get_list("set-cookie")) == 1


# Names.


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("192.0.2.7:8080", 200),
        ("[::1]:8080", 200),
        ("localhost", 200),
        ("LocalHost:9", 200),
        (socket.gethostname(), 200),
        ("stats.example.com", 200),
        ("door.internal:8080", 200),
        ("stats.example.com.evil.example", 421),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("localhost@evil.example", 421),
        ("[localhost]", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_only_names_of_ours_are_answered(serve: Callable[..., Served], host: str, status: int) -> None:
    served = serve(STATS_PUBLIC_URL="https://stats.example.com", STATS_HOST="door.internal", ADMIN_PASSWORD=PASSWORD)
    assert raw(served, "GET", "/static/icon.svg", {"Host": host}) == status


def test_a_request_without_a_name_is_refused(local: Served) -> None:
    host, _, port = local.host.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"GET /admin/info HTTP/1.0\r\n\r\n")
        with connection.makefile("rb") as answer:
            assert b" 400 " in answer.readline()


def test_a_cookie_is_secure_where_people_use_https(serve: Callable[..., Served]) -> None:
    served = serve(STATS_PUBLIC_URL="https://stats.example.com", ADMIN_PASSWORD=PASSWORD)
    form = {"password": PASSWORD}
    public = httpx.post(f"{served.url}/login", data=form, headers={"Host": "stats.example.com"})
    assert "Secure" in public.headers["set-cookie"]
    assert "Secure" not in httpx.post(f"{served.url}/login", data=form).headers["set-cookie"]


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("stats.example.com:8443", "https://stats.example.com:8443", 303),
        ("stats.example.com", "https://stats.example.com:8443", 303),  # of a proxy that drops the port
        ("stats.example.com:8443", "http://stats.example.com:8443", 403),
        ("stats.example.com:8443", "https://stats.example.com", 403),
        ("127.0.0.1", "http://127.0.0.1", 303),
        ("127.0.0.1", "http://localhost", 403),
    ],
)
def test_only_our_own_origins_may_log_in(serve: Callable[..., Served], host: str, origin: str, status: int) -> None:
    served = serve(STATS_PUBLIC_URL="https://stats.example.com:8443", ADMIN_PASSWORD=PASSWORD)
    headers = {"Host": host, "Origin": origin}
    assert httpx.post(f"{served.url}/login", data={"password": PASSWORD}, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("trusted", "is_believed"),
    [
        ("127.0.0.1", True),
        ("192.0.2.1, 127.0.0.0/8", True),
        ("*", True),
        ("192.0.2.1", False),
        (None, False),
    ],
)
def test_what_a_proxy_adds_is_believed_only_from_the_addresses_that_are_set(
    serve: Callable[..., Served], trusted: str | None, is_believed: bool
) -> None:
    added = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example", "Forwarded": "proto=https"}
    given = {} if trusted is None else {"FORWARDED_ALLOW_IPS": trusted}
    served = serve(ADMIN_PASSWORD=PASSWORD, **given)
    answer = httpx.post(f"{served.url}/login", data={"password": PASSWORD}, headers=added)
    assert ("Secure" in answer.headers["set-cookie"]) == is_believed
    for number in range(MAX_FAILURES + 1):
        address = {"X-Forwarded-For": f"198.51.100.{number}"}
        wrong = httpx.post(f"{served.url}/login", data={"password": "wrong"}, headers=address)
    assert wrong.status_code == (401 if is_believed else 429)


# Every answer.


@pytest.mark.parametrize("path", ["/admin/info", "/login", "/docs", "/health", "/static/info.js", "/nowhere", JOBS])
def test_every_answer_says_what_it_may_load(local: Served, path: str) -> None:
    headers = httpx.get(local.url + path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'self'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == ("no-cache" if path.startswith("/static") else "no-store")


def test_only_the_app_may_frame_the_page(serve: Callable[..., Served]) -> None:
    url = serve(NEXT_PUBLIC_APP_URL="https://app.example.com/club", INTERNAL_API_KEY=API_KEY).url
    policy = httpx.get(url + "/login").headers["content-security-policy"]
    assert policy.endswith("frame-ancestors 'self' https://app.example.com")


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd"])
def test_only_the_static_files_are_served(local: Served, path: str) -> None:
    assert raw(local, "GET", path, {"Host": "127.0.0.1"}) == 404


@pytest.mark.usefixtures("enqueues")
def test_nothing_secret_is_logged(
    server: httpx.Client, anyone: httpx.Client, capfd: pytest.CaptureFixture[str]
) -> None:
    server.post(ENQUEUE, json={**PAYLOAD, "note": "not for the log"})
    log_in(anyone, "a wrong password")
    log_in(anyone)
    logged = "".join(capfd.readouterr())
    assert "stats job enqueued" in logged
    assert "wrong password" in logged  # that there was one
    for secret in (API_KEY, CRON_SECRET, PASSWORD, "a wrong password", "not for the log"):
        assert secret not in logged


def test_keys_are_for_their_own_door(anyone: httpx.Client) -> None:
    assert anyone.get("/admin/info", headers={**KEY, **HTML}).status_code == 303
