"""The cache client with real servers: what counts as confirmed, and the result of every way of not answering."""

import gzip
import socket
import threading
import time
import tracemalloc
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from stats_pipeline.errors import SettingsError
from stats_pipeline.jobs import outbound
from stats_pipeline.jobs.invalidation import ROUTE, CacheClient
from stats_pipeline.jobs.models import Delivery
from stats_pipeline.settings import Settings

KEY = "correct-horse-battery-staple"
TAGS = frozenset({"season_stats", "half_season_stats"})


@contextmanager
def client_of(url: str, timeout: float = 5, **more: str) -> Iterator[CacheClient]:
    client = CacheClient(
        Settings.model_validate(
            {"NEXT_PUBLIC_APP_URL": url, "INTERNAL_API_KEY": KEY, "STATS_CACHE_TIMEOUT_SECONDS": timeout, **more}
        )
    )
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def client(httpserver: HTTPServer) -> Iterator[CacheClient]:
    with client_of(httpserver.url_for("/")) as opened:
        yield opened


def answer(httpserver: HTTPServer, status: int = 200, **body: object) -> None:
    httpserver.expect_request(ROUTE, method="POST").respond_with_json(
        {"success": True, "invalidated_tags": [], "failed_tags": [], **body}, status=status
    )


def ask(client: CacheClient) -> Delivery:
    delivery = client.invalidate(TAGS, request_id="run-1")
    assert KEY not in (delivery.problem or "")
    assert "\n" not in (delivery.problem or "")
    return delivery


def test_the_call_is_the_contracts(httpserver: HTTPServer, client: CacheClient) -> None:
    answer(httpserver, invalidated_tags=sorted(TAGS))

    assert ask(client) == Delivery(TAGS)

    [(request, _)] = httpserver.log
    assert (request.method, request.path) == ("POST", "/api/internal/cache/invalidate")
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.headers["Accept-Encoding"] == "identity"
    assert request.get_json() == {
        "tags": ["half_season_stats", "season_stats"],
        "source": "stats-pipeline",
        "requestId": "run-1",
    }


def test_a_path_in_the_apps_url_is_kept(httpserver: HTTPServer) -> None:
    httpserver.expect_request(f"/club{ROUTE}").respond_with_json({"success": True, "invalidated_tags": sorted(TAGS)})
    with client_of(httpserver.url_for("/club/")) as client:
        assert ask(client).taken == TAGS


def test_failed_tags_stay_due(httpserver: HTTPServer, client: CacheClient) -> None:
    answer(httpserver, 207, invalidated_tags=sorted(TAGS), failed_tags=["season_stats"], error="no such tag")
    delivery = ask(client)
    assert delivery.taken == {"half_season_stats"}
    assert delivery.problem == "the app did not invalidate season_stats: no such tag"


def test_a_200_that_names_no_tag_has_taken_none(httpserver: HTTPServer, client: CacheClient) -> None:
    answer(httpserver)
    assert not ask(client).taken


def test_tags_that_were_not_asked_for_are_not_taken(httpserver: HTTPServer, client: CacheClient) -> None:
    answer(httpserver, invalidated_tags=[*TAGS, "something_else"])
    assert ask(client) == Delivery(TAGS)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 422])
def test_a_refusal_is_shown_as_a_wrong_configuration(httpserver: HTTPServer, client: CacheClient, status: int) -> None:
    answer(httpserver, status, invalidated_tags=sorted(TAGS))
    delivery = ask(client)
    assert not delivery.taken
    assert delivery.problem is not None
    assert f"{status}" in delivery.problem
    assert "check NEXT_PUBLIC_APP_URL, INTERNAL_API_KEY" in delivery.problem


@pytest.mark.parametrize("status", [201, 202, 203, 206, 208, 408, 429, 500, 502, 503])
def test_a_failure_of_the_moment_is_not(httpserver: HTTPServer, client: CacheClient, status: int) -> None:
    answer(httpserver, status, invalidated_tags=sorted(TAGS))
    delivery = ask(client)
    assert delivery == Delivery(frozenset(), f"the app answered {status}", route_failed=True)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://www.example.com/api?token=hush#hush", "https://www.example.com/api"),
        ("http://me:hush@other.example.com:8080/x", "http://other.example.com:8080/x"),
        (f"https://www.example.com/{KEY}", "https://www.example.com/***"),
        (f"{ROUTE}/", f"{ROUTE}/"),
        ("//www.example.com/\x1b[31mred", "http://www.example.com/ [31mred"),
        ("http://[", "what is no address"),
        ("", "nowhere"),
    ],
)
def test_a_redirect_is_a_wrong_configuration_that_shows_where_it_leads(
    server_that_says: Callable[..., str], status: int, location: str, shown: str
) -> None:
    said = f"HTTP/1.1 {status} Over There\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
    with client_of(server_that_says(said.encode())) as client:
        delivery = ask(client)
    assert not delivery.taken
    assert delivery.route_failed
    problem = delivery.problem or ""
    assert f"redirects with {status} to " in problem
    assert f"{shown}, where the key is not sent: check NEXT_PUBLIC_APP_URL" in problem
    assert "hush" not in problem


def test_a_redirect_is_not_followed(httpserver: HTTPServer, client: CacheClient) -> None:
    moved = Response(status=308, headers={"Location": httpserver.url_for("/moved")})
    httpserver.expect_request(ROUTE).respond_with_response(moved)
    ask(client)
    assert [request.path for request, _ in httpserver.log] == [ROUTE]


def test_more_headers_are_sent_and_their_values_shown_nowhere(httpserver: HTTPServer) -> None:
    answer(httpserver, invalidated_tags=[], error="the bypass hush-hush-hush is not the one we know")
    headers = '{"x-vercel-protection-bypass": "hush-hush-hush"}'
    with client_of(httpserver.url_for("/"), STATS_APP_HEADERS=headers) as client:
        assert "the bypass *** is not the one we know" in (ask(client).problem or "")
    [(request, _)] = httpserver.log
    assert request.headers["x-vercel-protection-bypass"] == "hush-hush-hush"
    assert request.headers["Authorization"] == f"Bearer {KEY}"


def test_an_app_that_repeats_the_key_or_writes_to_a_terminal(httpserver: HTTPServer, client: CacheClient) -> None:
    answer(httpserver, error=f"no\n\x1b[2J key {KEY}\x00{'!' * 9_000}")
    problem = ask(client).problem or ""
    assert problem.startswith("the app did not invalidate half_season_stats, season_stats: no [2J key *** !")
    assert problem.isprintable()
    assert len(problem) <= 500


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "br", "x-unknown"])
def test_an_encoded_answer_is_refused_unread(server_that_says: Callable[..., str], encoding: str) -> None:
    bomb = gzip.compress(gzip.compress(b" " * 50_000_000))
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(bomb)}\r\n\r\n"
    with client_of(server_that_says(head.encode() + bomb)) as client:
        tracemalloc.start()
        try:
            delivery = ask(client)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert not delivery.taken
    assert f"({encoding}), though identity was asked for" in (delivery.problem or "")
    assert most < 1_000_000


@pytest.mark.parametrize(
    "body",
    [
        b"<html>It works!</html>",
        b"",
        b"null",
        b"[]",
        b'{"success": true, "invalidated_tags": "season_stats"}',
        b'{"invalidated_tags": ["season_stats"]}',
        b"\xff\xfe\x00",
        b'{"success": true, "invalidated_tags": ["season_stats"',
    ],
)
def test_a_body_that_is_not_the_contract_takes_nothing(
    httpserver: HTTPServer, client: CacheClient, body: bytes
) -> None:
    httpserver.expect_request(ROUTE).respond_with_data(body, content_type="application/json")
    problem = "the app answered 200 with a body that is not its contract"
    assert ask(client) == Delivery(frozenset(), problem, route_failed=True)


def test_a_huge_body_takes_nothing_and_is_not_kept_in_memory(httpserver: HTTPServer, client: CacheClient) -> None:
    sent = 0

    def pages() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(2_000):
            sent += 65_536
            yield b" " * 65_536

    httpserver.expect_request(ROUTE).respond_with_handler(lambda _: Response(pages(), HTTPStatus.OK))
    delivery = ask(client)
    assert not delivery.taken
    assert "not its contract" in (delivery.problem or "")
    assert sent < 2_000 * 65_536  # the client hung up


def test_an_app_that_does_not_answer_in_time(httpserver: HTTPServer) -> None:
    over = threading.Event()

    def hang(_: Request) -> Response:
        over.wait(30)
        return Response()

    httpserver.expect_request(ROUTE).respond_with_handler(hang)
    with client_of(httpserver.url_for("/"), timeout=0.2) as client:
        try:
            asked_at = time.monotonic()
            delivery = ask(client)
            assert time.monotonic() - asked_at < 3  # the settings' patience, not the client's own
        finally:
            over.set()
    assert not delivery.taken
    assert delivery.problem == "no whole answer within 0.2 s"


def test_an_app_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        port = closed_soon.getsockname()[1]
    with client_of(f"http://127.0.0.1:{port}") as client:
        delivery = ask(client)
    assert not delivery.taken
    assert delivery.problem == "ConnectError: [Errno 111] Connection refused"


@pytest.mark.parametrize(
    "half",
    [
        b"",
        b"HTTP/1.1 200 O",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"not HTTP at all\r\n\r\n",
    ],
)
def test_a_connection_that_breaks_half_way(half: bytes, server_that_says: Callable[..., str]) -> None:
    with client_of(server_that_says(half)) as client:
        delivery = ask(client)
    assert not delivery.taken
    assert "ProtocolError" in (delivery.problem or "")


@pytest.fixture
def server_that_says() -> Iterator[Callable[..., str]]:
    """Start a server that reads one request, sends these bytes and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threads = []

        def start(said: bytes, until: bytes = b'"tags"') -> str:
            def serve() -> None:
                connection, _ = listening.accept()
                with connection:
                    received = b""
                    while until not in received:
                        received += connection.recv(65_536)
                    connection.sendall(said)

            threads.append(threading.Thread(target=serve))
            threads[-1].start()
            return f"http://127.0.0.1:{listening.getsockname()[1]}"

        yield start
        for thread in threads:
            thread.join()


def test_one_client_serves_many_threads(httpserver: HTTPServer, client: CacheClient) -> None:
    answer(httpserver, invalidated_tags=sorted(TAGS))
    deliveries: list[Delivery] = []
    threads = [threading.Thread(target=lambda: deliveries.append(ask(client))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert deliveries == [Delivery(TAGS)] * 10


def test_without_an_app_there_is_no_client() -> None:
    with pytest.raises(SettingsError, match="NEXT_PUBLIC_APP_URL is not set"):
        CacheClient(Settings.model_validate({}))


PROXIES = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "http_proxy", "https_proxy")


@pytest.mark.parametrize("value", ["socks5://127.0.0.1:1080", "http://127.0.0.1:1", "no URL at all"])
def test_proxies_of_the_environment_are_not_used(
    httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    for name in PROXIES:
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_PROXY", "[")
    monkeypatch.setenv("NETRC", "/nowhere")
    answer(httpserver, invalidated_tags=sorted(TAGS))
    with client_of(httpserver.url_for("/")) as client:
        assert ask(client) == Delivery(TAGS)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "stats.localhost"])
def test_this_machine_is_never_reached_through_a_proxy(
    httpserver: HTTPServer, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "_look_up", lambda *_: ["127.0.0.1"])
    answer(httpserver, invalidated_tags=sorted(TAGS))
    with client_of(f"http://{host}:{httpserver.port}", STATS_HTTP_PROXY="http://127.0.0.1:1") as client:
        assert ask(client) == Delivery(TAGS)


def test_an_app_elsewhere_is_reached_through_our_proxy(httpserver: HTTPServer) -> None:
    answer(httpserver, invalidated_tags=sorted(TAGS))
    proxy = f"http://me:pass%40word@{httpserver.host}:{httpserver.port}"
    with client_of("http://app.example.com", STATS_HTTP_PROXY=proxy) as client:
        assert ask(client) == Delivery(TAGS)
    [(request, _)] = httpserver.log
    assert request.headers["Host"] == "app.example.com"
    assert request.headers["Proxy-Authorization"] == "Basic " + b64encode(b"me:pass@word").decode()


def test_a_proxy_that_refuses_does_not_make_the_password_known(server_that_says: Callable[..., str]) -> None:
    refusal = b"HTTP/1.1 407 not with pass@word\r\nContent-Length: 0\r\n\r\n"
    proxy = server_that_says(refusal, until=b"\r\n\r\n").replace("http://", "http://me:pass%40word@")
    with client_of("https://app.example.com", STATS_HTTP_PROXY=proxy) as client:
        assert ask(client).problem == "ProxyError: 407 not with ***"
