"""The head of a request, which anyone may send: its length is limited, and its Host is never used in an address."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from stats_pipeline.web.server import MAX_HEAD
from stats_pipeline_tests.web.conftest import Served

LONG = 20_000_000  # bytes
REQUEST = b"GET /login HTTP/1.1\r\nHost: localhost\r\n"
UNTIL_REFUSED = 0.5  # seconds that another request may take meanwhile


def send(served: Served, head: bytes) -> bytes:
    """Send all of it, and return the first line of the answer."""
    host, _, port = served.host.partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head)
        return connection.makefile("rb").readline()


@pytest.mark.parametrize(
    "head",
    [
        REQUEST + b"X: " + b"x" * LONG,
        REQUEST + b"X: x\r\n" * (LONG // 6),
        b"GET /login?" + b"x" * LONG,
        b"POST /login HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
        + b"X: x\r\n" * (LONG // 6),
    ],
    ids=["one header", "many headers", "the URL", "trailers"],
)
def test_a_long_head_is_cut_off_and_keeps_nobody_waiting(local: Served, head: bytes) -> None:
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=local.url, timeout=60) as other:
        sending = pool.submit(send, local, head)
        waits: list[float] = []
        while not (waits and sending.done()):
            started = time.monotonic()
            assert other.get("/login").status_code == 200
            waits.append(time.monotonic() - started)
        with pytest.raises(ConnectionError):
            sending.result()
    assert max(waits) < UNTIL_REFUSED


def test_a_head_of_a_browser_with_many_cookies_is_read(local: Served) -> None:
    cookies = b"Cookie: " + b"a=b; " * 4_000
    assert len(cookies) > MAX_HEAD / 2
    assert send(local, REQUEST + cookies + b"c=d\r\n\r\n") == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "//",
            "/login",
            "/login/",
            "/logout/",
            "/docs",
            "/docs/",
            "/admin/info",
            "/admin/info/",
            "/static",
            "/static/",
        ),
        *(
            "/admin",
            "/admin/",
            "/health/",
            "/metrics/",
            "/openapi.json/",
            "/api/admin/background-jobs/",
            "/admin/info/jobs/",
        ),
        *("//evil.example", "//evil.example/", "/%2fevil.example/", "/\\evil.example/", "/login/..//evil.example/"),
    ],
)
def test_no_answer_leads_to_the_host_that_the_caller_has_named(guarded: Served, local: Served, path: str) -> None:
    for served in (guarded, local):
        for method in ("GET", "POST"):
            with httpx.Client() as client:
                request = httpx.Request(
                    method, served.url, headers={"Host": "evil.example"}, extensions={"target": path.encode()}
                )
                answer = client.send(request)
            assert "evil.example" not in str(answer.headers)
            assert answer.headers.get("location", "/") in ("/", "/login", "/admin/info")
