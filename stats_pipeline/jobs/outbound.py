"""Outgoing HTTP calls, each with one deadline for the whole call, however slowly the other side answers.

Built on httpcore, the layer beneath httpx: it reads no environment, follows no redirect and decompresses nothing. The
meaning of an answer belongs to the caller.
"""

import functools
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import certifi
import httpcore
from httpcore import SOCKET_OPTION

_KEEP_ALIVE = 5  # seconds; common servers close an idle connection after the same time
_TROUBLE = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
    OSError,
    ValueError,  # an invalid host name
)

_deadline: ContextVar[float] = ContextVar("deadline")


class CallFailed(Exception):
    """There is no answer, or only part of one; the message says why."""


@functools.cache
def tls(ca_file: Path | None) -> ssl.SSLContext:
    """The public certificates and those of the file. Reading them takes 20 ms: call it before processes are forked.

    Not `ssl.create_default_context`, which writes the session keys to the file that SSLKEYLOGFILE names.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(certifi.where())
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context


class Outbound:
    """A pool of kept-alive connections, safe to share between threads."""

    def __init__(self, *, timeout: float, ca_file: Path | None = None, proxy: httpcore.Proxy | None = None) -> None:
        self._timeout = timeout
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls(ca_file), proxy=proxy, keepalive_expiry=_KEEP_ALIVE, network_backend=_Backend()
        )

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    @contextmanager
    def post(self, url: str, content: bytes, headers: Sequence[tuple[str, str]]) -> Iterator[httpcore.Response]:
        """The answer, with its body unread. The deadline covers the whole block, which raises `CallFailed`."""
        reset = _deadline.set(time.monotonic() + self._timeout)
        try:
            # All other waits are limited by `_Stream` and `_Backend`.
            waits = {"timeout": {"pool": self._timeout}}
            with self._pool.stream("POST", url, content=content, headers=list(headers), extensions=waits) as answer:
                yield answer
        except (httpcore.TimeoutException, TimeoutError):
            raise CallFailed(f"no whole answer within {self._timeout:g} s") from None
        except _TROUBLE as error:
            raise CallFailed(f"{type(error).__name__}: {error}".rstrip(": ")) from None
        finally:
            _deadline.reset(reset)


def _left() -> float:
    left = _deadline.get() - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Stream(httpcore.NetworkStream):
    """A connection on which each wait ends at the deadline of this thread's current call.

    For Python's `ssl` the handshake is a single wait, and so is reading a record, in however many pieces they arrive.
    """

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        return self._inner.read(max_bytes, _left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        connection: socket.socket = self._inner.get_extra_info("socket")
        try:
            while buffer:
                connection.settimeout(_left())
                buffer = buffer[connection.send(buffer) :]
        except TimeoutError:
            raise
        except OSError as error:  # httpcore then reads what was sent before the connection was closed
            raise httpcore.WriteError(str(error)) from None

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, _left()))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    """Looks names up and connects within the deadline."""

    def __init__(self) -> None:
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = _look_up(host, port)
        while True:
            address = addresses.pop(0)
            try:
                # An address that never answers must leave time for the others.
                share = _left() / (len(addresses) + 1)
                return _Stream(self._inner.connect_tcp(address, port, share, local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if not addresses:
                    raise


def _look_up(host: str, port: int) -> list[str]:
    """The host's addresses. A look-up cannot be interrupted, so it runs in a thread, which is abandoned if it hangs."""
    found: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.put(list(dict.fromkeys(str(info[4][0]) for info in infos)))
        except (OSError, ValueError) as error:
            found.put(error)

    threading.Thread(target=look_up, daemon=True).start()
    try:
        answer = found.get(timeout=_left())
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, Exception):
        raise httpcore.ConnectError(f"{host}: {answer}")
    return answer
