"""Logins, wrong passwords and wrong keys over time: they are forgotten in the end, wrong ones also for the right one.

The access that each credential gives is in `test_security.py`.
"""

import ipaddress
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace

import httpx
import pytest
from starlette.requests import Request

from stats_pipeline.web import auth
from stats_pipeline.web.auth import FAILURE_WINDOW, MAX_FAILURES, MAX_LOGINS
from stats_pipeline_tests.web.conftest import API_KEY, CRON, CRON_SECRET, JOBS, PASSWORD, VIEWER_PASSWORD, Served

pytestmark = pytest.mark.slow

Later = Callable[[float], None]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Later:
    """Let so many seconds pass, for the guard."""
    passed = 0.0
    monkeypatch.setattr(auth, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed))

    def pass_by(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    return pass_by


@pytest.fixture
def log_in(serve: Callable[..., Served]) -> Callable[..., int]:
    """Try a password from an address; the status of the answer."""
    url = serve(ADMIN_PASSWORD=PASSWORD, VIEWER_PASSWORD=VIEWER_PASSWORD, FORWARDED_ALLOW_IPS="127.0.0.1").url

    def post(password: str, address: str = "192.0.2.1") -> int:
        headers = {"X-Forwarded-For": address}  # as a proxy on this machine reports it
        return httpx.post(f"{url}/login", data={"password": password}, headers=headers).status_code

    return post


def test_wrong_passwords_are_forgotten_after_the_window(log_in: Callable[..., int], later: Later) -> None:
    for _ in range(MAX_FAILURES):
        assert log_in("wrong") == 401
    later(FAILURE_WINDOW - 60)
    assert log_in(PASSWORD) == 429
    later(61)
    assert log_in(PASSWORD) == 303


def test_only_those_that_are_old_enough_are_forgotten(log_in: Callable[..., int], later: Later) -> None:
    for _ in range(MAX_FAILURES):
        assert log_in("wrong") == 401
        later(FAILURE_WINDOW / 10)
    later(FAILURE_WINDOW / 2 + 1)  # since the first one the window has passed
    assert log_in("wrong") == 401
    assert log_in(PASSWORD) == 429


def test_the_right_password_makes_good_for_the_wrong_ones(log_in: Callable[..., int]) -> None:
    for _ in range(3):
        for _ in range(MAX_FAILURES - 1):
            assert log_in("wrong") == 401
        assert log_in(PASSWORD) == 303


def test_the_viewers_password_does_not_make_good_for_guesses_of_the_admins(log_in: Callable[..., int]) -> None:
    for _ in range(MAX_FAILURES - 1):
        assert log_in("wrong") == 401
    assert log_in(VIEWER_PASSWORD) == 303
    assert log_in("wrong") == 401
    assert log_in(PASSWORD) == 429
    assert log_in(VIEWER_PASSWORD) == 429


@pytest.mark.parametrize("password", [PASSWORD, VIEWER_PASSWORD], ids=["admin", "viewer"])
def test_right_logins_are_limited_too(log_in: Callable[..., int], later: Later, password: str) -> None:
    for _ in range(MAX_LOGINS):
        assert log_in(password) == 303
    assert log_in(password) == 429
    assert log_in(password, "192.0.2.2") == 303
    later(FAILURE_WINDOW + 1)
    assert log_in(password) == 303


def test_of_many_addresses_those_that_tried_last_are_remembered(
    log_in: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "MAX_ADDRESSES", 3)
    for number in (1, 2, 3):
        for _ in range(MAX_FAILURES):
            assert log_in("wrong", f"192.0.2.{number}") == 401
    assert log_in("wrong", "192.0.2.1") == 429
    assert log_in("wrong", "192.0.2.4") == 401  # in the place of the first
    assert [log_in("wrong", f"192.0.2.{number}") for number in (2, 3, 1)] == [429, 429, 401]


def test_a_login_takes_no_longer_after_tries_from_many_addresses() -> None:
    def request(number: int) -> Request:
        address = str(ipaddress.ip_address("10.0.0.0") + number)
        return Request({"type": "http", "client": (address, 1), "headers": []})

    tries = auth._Tries("wrong passwords")
    seconds = []
    for number in range(2 * auth.MAX_ADDRESSES):
        begun = time.perf_counter()
        tries.refuse_beyond(MAX_FAILURES, request(number))
        tries.add(request(number))
        seconds.append(time.perf_counter() - begun)
    assert statistics.median(seconds[-1000:]) < 0.001
    assert len(tries._times) == auth.MAX_ADDRESSES


def test_two_addresses_are_counted_apart(log_in: Callable[..., int]) -> None:
    for number in range(MAX_FAILURES):
        assert log_in("wrong", f"192.0.2.{number}") == 401
    for number in range(MAX_FAILURES):
        assert log_in(PASSWORD, f"192.0.2.{number}") == 303


DOORS = pytest.mark.parametrize(
    ("path", "key", "status"), [(JOBS, API_KEY, 200), ("/metrics", API_KEY, 200), (CRON, CRON_SECRET, 202)]
)


@pytest.fixture
def show(serve: Callable[..., Served]) -> Callable[..., httpx.Response]:
    """Ask with a key from an address."""
    secrets = {"ADMIN_PASSWORD": PASSWORD, "INTERNAL_API_KEY": API_KEY, "CRON_SECRET": CRON_SECRET}
    url = serve(**secrets, FORWARDED_ALLOW_IPS="127.0.0.1").url

    def get(path: str, key: str | None, address: str = "192.0.2.1") -> httpx.Response:
        headers = {"X-Forwarded-For": address} | ({} if key is None else {"Authorization": f"Bearer {key}"})
        return httpx.get(url + path, headers=headers, timeout=20)

    return get


@DOORS
def test_wrong_keys_are_limited_per_address_like_wrong_passwords(
    show: Callable[..., httpx.Response], later: Later, path: str, key: str, status: int
) -> None:
    for number in range(MAX_FAILURES):
        assert show(path, f"guess {number}").status_code == 401
    refused = show(path, "one more guess")
    assert refused.status_code == 429
    assert 0 < int(refused.headers["retry-after"]) <= FAILURE_WINDOW + 1
    assert show(path, key).status_code == 429
    assert show(path, key, "192.0.2.2").status_code == status
    later(FAILURE_WINDOW + 1)
    assert show(path, "a guess").status_code == 401
    assert show(path, key).status_code == status


def test_guesses_of_both_keys_are_counted_together_and_requests_without_one_are_not(
    show: Callable[..., httpx.Response],
) -> None:
    for path in (JOBS, CRON, "/metrics"):
        for _ in range(MAX_FAILURES):
            assert show(path, None).status_code == 401
    for path in (JOBS, CRON, "/metrics", JOBS, CRON):
        assert show(path, "a guess").status_code == 401
    for path in (JOBS, CRON, "/metrics"):
        assert show(path, "a guess").status_code == 429
        assert show(path, None).status_code == 401


def test_the_secret_of_the_cron_does_not_make_good_for_guesses_of_the_other_key(
    show: Callable[..., httpx.Response],
) -> None:
    for _ in range(MAX_FAILURES):
        assert show(JOBS, "a guess").status_code == 401
        assert show(CRON, CRON_SECRET).status_code in (202, 429)
    assert show(JOBS, "a guess").status_code == 429


def test_wrong_keys_do_not_close_the_login(serve: Callable[..., Served]) -> None:
    served = serve(ADMIN_PASSWORD=PASSWORD, INTERNAL_API_KEY=API_KEY)
    for _ in range(MAX_FAILURES + 1):
        refused = httpx.get(served.url + JOBS, headers={"Authorization": "Bearer wrong"})
    assert refused.status_code == 429
    assert httpx.post(f"{served.url}/login", data={"password": PASSWORD}).status_code == 303
