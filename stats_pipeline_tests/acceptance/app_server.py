"""The app as the pipeline sees it: a real HTTP server with the cache invalidation route, and every way to misbehave.

It records from which version of the data each tag's pages were built, so a test can tell whether a page is stale. The
version comes from `processes.py`; nothing here knows of the pipeline.
"""

import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from stats_pipeline_tests.ports import free_port

ROUTE = "/api/internal/cache/invalidate"
KEY = "the key that only this app knows"

Behaviour = Callable[["Call"], None]


class Call(BaseHTTPRequestHandler):
    """One call of the route. Each has a connection of its own (HTTP/1.0), so nothing is hidden by a reused one."""

    server: "_Server"
    tags: tuple[str, ...] = ()

    def setup(self) -> None:
        self.server.app.accepted(self)
        super().setup()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.tags = tuple(body["tags"])
        if self.path != ROUTE or self.headers["authorization"] != f"Bearer {KEY}":
            self.answer(401, {"success": False, "error": "wrong key"})
            return
        self.server.app.received.append(Received(time.time(), self.tags, body["requestId"]))
        self.server.app.behaviour(self)

    def take(self, tags: Collection[str]) -> None:
        """Drop the pages of these tags; the next visitor sees the data as it is now."""
        self.server.app.invalidate(tags)

    def answer(self, status: int, body: Mapping[str, Any]) -> None:
        self.raw(status, json.dumps(body).encode())

    def raw(self, status: int, content: bytes, *, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep the test's output to itself."""


@dataclass(frozen=True)
class Received:
    """A call with the right key."""

    at: float
    tags: tuple[str, ...]
    request_id: str


# The ways to answer.


def take_all(call: Call) -> None:
    call.take(call.tags)
    call.answer(200, {"success": True, "invalidated_tags": call.tags, "failed_tags": []})


def leave(*tags: str) -> Behaviour:
    """Take all but these, and say so with 207."""

    def behave(call: Call) -> None:
        taken = [tag for tag in call.tags if tag not in tags]
        left = [tag for tag in call.tags if tag in tags]
        call.take(taken)
        status = 207 if left else 200
        call.answer(status, {"success": not left, "invalidated_tags": taken, "failed_tags": left})

    return behave


def refuse(status: int) -> Behaviour:
    return lambda call: call.answer(status, {"success": False, "error": "no"})


def close_half_way(call: Call) -> None:
    call.raw(200, b'{"success": true, "invalidated_tags": [', length=500)


def answer_garbage(call: Call) -> None:
    call.raw(200, b"<html>Sign in to continue</html>")


class Hold:
    """A behaviour that keeps every call waiting until it is released; `arrived` says that one is there."""

    def __init__(self, then: Behaviour = take_all, *, first: Behaviour | None = None) -> None:
        self.arrived = threading.Event()
        self.released = threading.Event()
        self._then, self._first = then, first

    def __call__(self, call: Call) -> None:
        if self._first is not None:
            self._first(call)
        self.arrived.set()
        self.released.wait(60)
        try:
            self._then(call)
        except OSError:
            return  # the caller has gone


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    app: "App"

    def handle_error(self, *_: object) -> None:
        """A caller that was killed, or an app that was told to break, is what the tests are about."""


class App:
    """The server. `version` reads, per tag, the version of the data that a page built now would show."""

    def __init__(self) -> None:
        self.version: Callable[[], Mapping[str, int]] = dict
        self.received: list[Received] = []
        self.behaviour: Behaviour = take_all
        self.on_accept: Callable[[], None] = lambda: None
        self._shown: dict[str, int] = {}
        self._lock = threading.Lock()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._server: _Server | None = None

    def start(self) -> None:
        self._server = _Server(("127.0.0.1", self.port), Call)
        self._server.app = self
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @contextmanager
    def down(self) -> Iterator[None]:
        """Nothing listens on the port for the length of the block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def behaving(self, behaviour: Behaviour) -> Iterator[None]:
        self.behaviour = behaviour
        try:
            yield
        finally:
            self.behaviour = take_all

    def accepted(self, _: Call) -> None:
        self.on_accept()

    def invalidate(self, tags: Collection[str]) -> None:
        versions = self.version()
        with self._lock:
            for tag in tags:
                self._shown[tag] = max(self._shown.get(tag, 0), versions.get(tag, 0))

    def stale_tags(self) -> set[str]:
        """Tags whose pages show older data than there is."""
        with self._lock:
            return {tag for tag, version in self.version().items() if self._shown.get(tag, 0) < version}
