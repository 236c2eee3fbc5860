"""One deadline for an outgoing call, whatever the other side does; and no influence of the environment."""

import itertools
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from stats_pipeline.jobs import outbound
from stats_pipeline.jobs.outbound import CallFailed, Outbound

DEADLINE = 0.4
PATIENCE = 10  # seconds, for what ends by itself however busy the machine is
AT_ONCE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Drip = Callable[[socket.socket], None]


@pytest.fixture
def serve() -> Iterator[Callable[[Drip], str]]:
    """Start a server that gives each connection to this function, and ends with it when the caller hangs up."""
    with ExitStack() as ending:

        def start(drip: Drip) -> str:
            listening = ending.enter_context(socket.create_server(("127.0.0.1", 0)))

            def converse(connection: socket.socket) -> None:
                with connection:
                    try:
                        drip(connection)
                        while connection.recv(65_536):
                            pass  # closing with bytes unread would be a reset, and that may overtake the answer
                    except OSError:
                        return  # the caller hung up

            def accept() -> None:
                while True:
                    try:
                        connection, _ = listening.accept()
                    except OSError:
                        return
                    threads.append(threading.Thread(target=converse, args=(connection,)))
                    threads[-1].start()

            def end() -> None:
                listening.shutdown(socket.SHUT_RDWR)
                for thread in threads:
                    thread.join(10)
                    assert not thread.is_alive(), "the caller has kept its connection"

            threads = [threading.Thread(target=accept)]
            threads[0].start()
            ending.callback(end)
            return f"http://127.0.0.1:{listening.getsockname()[1]}"

        yield start


def drip(pieces: Iterator[bytes]) -> Drip:
    """Each piece 20 ms after the last: no wait is ever long."""

    def talk(connection: socket.socket) -> None:
        connection.recv(65_536)
        for piece in pieces:
            connection.sendall(piece)
            threading.Event().wait(0.02)

    return talk


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 that signs itself, and its key, in one file."""
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-batch"]
    name = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*new, *name, "-keyout", file, "-out", f"{file}.crt"], check=True, capture_output=True)
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


def speak_tls(connection: socket.socket, certificate: Path, send: Callable[[bytes], None]) -> None:
    """Shake hands, read a request, and hand the bytes of a long answer to `send`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    spoken = context.wrap_bio(incoming, outgoing, server_side=True)
    for step in (spoken.do_handshake, lambda: spoken.read(65_536)):
        while True:
            try:
                step()
                break
            except ssl.SSLWantReadError:
                connection.sendall(outgoing.read())
                if not (received := connection.recv(65_536)):
                    raise ConnectionResetError from None
                incoming.write(received)
        connection.sendall(outgoing.read())
    spoken.write(b"HTTP/1.1 200 OK\r\nContent-Length: 16000\r\n\r\n" + b" " * 16_000)
    send(outgoing.read())


def call(url: str, *, deadline: float = PATIENCE, content: bytes = b"{}", ca_file: Path | None = None) -> bytes:
    with (
        closing(Outbound(timeout=deadline, ca_file=ca_file)) as client,
        client.post(url, content, [("Host", "x")]) as answer,
    ):
        return b"".join(answer.iter_stream())


def never_answers_whole(url: str, *, content: bytes = b"{}", ca_file: Path | None = None) -> None:
    started = time.monotonic()
    with pytest.raises(CallFailed, match=r"^no whole answer within 0\.4 s$"):
        call(url, deadline=DEADLINE, content=content, ca_file=ca_file)
    assert DEADLINE * 0.9 < time.monotonic() - started < PATIENCE


@pytest.mark.parametrize(
    "pieces",
    [
        itertools.chain([b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"], itertools.repeat(b" ")),
        itertools.chain([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"], itertools.repeat(b"1\r\nx\r\n")),
        itertools.chain([b"HTTP/1.1 200 OK\r\n"], (f"X-{n}: 1\r\n".encode() for n in itertools.count())),
        itertools.chain([b"HTTP/1.1 200 OK\r\nX: "], itertools.repeat(b"x")),
        itertools.repeat(b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    ],
    ids=["body", "chunks", "headers", "one header", "early hints"],
)
def test_an_answer_that_drips(serve: Callable[[Drip], str], pieces: Iterator[bytes]) -> None:
    never_answers_whole(serve(drip(pieces)))


def test_an_answer_that_never_comes(serve: Callable[[Drip], str]) -> None:
    def listen(connection: socket.socket) -> None:
        while connection.recv(65_536):
            pass

    never_answers_whole(serve(listen))


def test_an_answer_that_floods(serve: Callable[[Drip], str]) -> None:
    def flood(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)

    never_answers_whole(serve(flood))


def test_a_request_that_is_swallowed_in_sips(serve: Callable[[Drip], str]) -> None:
    def sip(connection: socket.socket) -> None:
        for _ in range(40):
            connection.recv(20_000)
            threading.Event().wait(0.02)

    never_answers_whole(serve(sip), content=b" " * 50_000_000)


def test_a_handshake_that_drips(serve: Callable[[Drip], str]) -> None:
    # A server's hello of 16 kB, of which each byte comes in time.
    hello = itertools.chain([b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc"], itertools.repeat(b"\x00"))
    never_answers_whole(serve(drip(hello)).replace("http:", "https:"))


def test_records_that_drip(serve: Callable[[Drip], str], certificate: Path) -> None:
    def talk(connection: socket.socket) -> None:
        def send(answer: bytes) -> None:
            for byte in answer:
                connection.sendall(bytes([byte]))
                threading.Event().wait(0.02)

        speak_tls(connection, certificate, send)

    never_answers_whole(serve(talk).replace("http:", "https:"), ca_file=certificate)


def test_a_name_that_is_never_found(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [over.wait(10)][:0])
    try:
        never_answers_whole("http://app.example.com")
    finally:
        over.set()


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(CallFailed, match=r"^ConnectError: app\.invalid: "):
        call("http://app.invalid")


def test_an_address_that_swallows_everything_leaves_time_for_the_next(
    serve: Callable[[Drip], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(AT_ONCE)

    url = serve(talk)
    monkeypatch.setattr(outbound, "_look_up", lambda *_: ["127.0.0.2", "127.0.0.1"])
    with ExitStack() as waiting:
        full = waiting.enter_context(socket.socket())
        full.bind(("127.0.0.2", int(url.rpartition(":")[2])))
        full.listen(0)
        for _ in range(4):  # the first one or two are queued; from then on nobody is answered
            filler = waiting.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        started = time.monotonic()
        assert call(url, deadline=2) == b"ok"
        assert time.monotonic() - started > 0.9  # half of the deadline


def test_a_connection_is_used_again(serve: Callable[[Drip], str]) -> None:
    connections = []

    def talk(connection: socket.socket) -> None:
        connections.append(connection)
        received = b""
        while part := connection.recv(65_536):
            received += part
            if received.endswith(b"{}"):  # head and body may come apart
                connection.sendall(AT_ONCE)
                received = b""

    with closing(Outbound(timeout=5)) as client:
        url = serve(talk)
        for _ in range(3):
            with client.post(url, b"{}", [("Host", "x")]) as answer:
                assert answer.read() == b"ok"
    assert len(connections) == 1


def test_the_environment_names_no_certificates_and_no_file_for_keys(
    serve: Callable[[Drip], str], certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbound.tls.cache_clear()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nowhere.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    url = serve(lambda connection: speak_tls(connection, certificate, connection.sendall)).replace("http:", "https:")
    assert call(url, ca_file=certificate) == b" " * 16_000
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    outbound.tls.cache_clear()
    with pytest.raises(CallFailed, match="CERTIFICATE_VERIFY_FAILED"):
        call(url)
