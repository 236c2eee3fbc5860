"""The Dagster UI in this process: opened at the first visit, on an event loop and threads of its own.

So neither a code server that hangs nor a long query of Dagster's keeps our own page waiting. It is handed in as an ASGI
app; who may ask it for what is decided in `door.py`.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from typing import TypeVar

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stats_pipeline.errors import one_line

MAX_REQUESTS = 8  # at a time; each holds a thread, and all of them compete with our page for the processor
MAX_OF_VIEWERS = 4  # of these, so that admins always find a turn
TURN_SECONDS = 10  # that a request waits for its turn
_CLOSE_SECONDS = 2
T = TypeVar("T")


class Busy(Exception):
    """A request has waited too long for its turn."""


class DagsterUI:
    """An ASGI app that is opened when it is first needed. One per process.

    `addresses` are those that are not pages, with their kind; `root_files` are files that its pages ask for without the
    prefix; `mutations_of` names what the body of a GraphQL request could change.
    """

    def __init__(
        self,
        open_app: Callable[[], AbstractContextManager[ASGIApp]],
        *,
        addresses: Mapping[str, str],
        root_files: frozenset[str],
        mutations_of: Callable[[bytes], list[str]],
    ) -> None:
        self.root_files = root_files
        self.mutations_of = mutations_of
        self._open_app = open_app
        self._addresses = addresses
        self._thread: threading.Thread | None = None
        self._app: ASGIApp | None = None
        self._turns = asyncio.Semaphore(MAX_REQUESTS)
        self._turns_of_viewers = asyncio.Semaphore(MAX_OF_VIEWERS)

    def kind(self, path: str) -> str:
        """What is at a path without the prefix: one of the kinds of `addresses`, or `page`, which may be a file."""
        for address, kind in self._addresses.items():
            if path == address or (address.endswith("/") and path.startswith(address)):
                return kind
        return "page"

    @property
    def is_open(self) -> bool:
        """Whether it can be called."""
        return self._app is not None

    def open(self) -> None:
        """Begin to open it, unless that has begun. If it fails, the next call tries again."""
        if self._thread is None or not self._thread.is_alive():
            # A daemon: threads that wait for a code server that hangs do not keep the process from ending.
            self._thread = threading.Thread(target=self._run, name="dagster-ui", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Close it, and wait for that a little."""
        if self._app is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)

    @asynccontextmanager
    async def turn(self, *, is_viewer: bool) -> AsyncIterator[None]:
        """Be one of the few requests at a time, for the length of the block. Raises `Busy`."""
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(TURN_SECONDS):
                    if is_viewer:
                        await held.enter_async_context(self._turns_of_viewers)
                    await held.enter_async_context(self._turns)
            except TimeoutError:
                raise Busy from None
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the app, which is open, answer a request."""
        assert self._app is not None
        here = asyncio.get_running_loop()

        async def receive_there() -> Message:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_plain(receive()), here))

        async def send_there(message: Message) -> None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_plain(send(message)), here))

        answer = _plain(self._app(scope, receive_there, send_there))
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(answer, self._loop))

    def _run(self) -> None:
        try:
            with self._open_app() as app:
                asyncio.run(self._serve(app))
        except Exception as error:  # whatever it is, the next visit tries again
            structlog.get_logger().warning("the Dagster UI cannot be opened", reason=one_line(error))
        finally:
            self._app = None

    async def _serve(self, app: ASGIApp) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._app = app
        await self._stop.wait()


async def _plain(awaitable: Awaitable[T]) -> T:
    """A coroutine, which is all that another loop takes."""
    return await awaitable
