"""Wrong passwords over time: they are forgotten in the end, or at once when the right one comes.

Who gets in with what is in `test_security.py`.
"""

import time
from collections.abc import Callable
from types import SimpleNamespace

import httpx
import pytest

from stats_pipeline.web import auth
from stats_pipeline.web.auth import LOGIN_FAILURES, LOGIN_WINDOW
from stats_pipeline_tests.web.conftest import PASSWORD, Served

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
    url = serve(ADMIN_PASSWORD=PASSWORD).url

    def post(password: str, address: str = "192.0.2.1") -> int:
        headers = {"X-Forwarded-For": address}  # as a proxy on this machine reports it
        return httpx.post(f"{url}/login", data={"password": password}, headers=headers).status_code

    return post


def test_wrong_passwords_are_forgotten_after_the_window(log_in: Callable[..., int], later: Later) -> None:
    for _ in range(LOGIN_FAILURES):
        assert log_in("wrong") == 401
    later(LOGIN_WINDOW - 60)
    assert log_in(PASSWORD) == 429
    later(61)
    assert log_in(PASSWORD) == 303


def test_only_those_that_are_old_enough_are_forgotten(log_in: Callable[..., int], later: Later) -> None:
    for _ in range(LOGIN_FAILURES):
        assert log_in("wrong") == 401
        later(LOGIN_WINDOW / 10)
    later(LOGIN_WINDOW / 2 + 1)  # since the first one the window has passed
    assert log_in("wrong") == 401
    assert log_in(PASSWORD) == 429


def test_the_right_password_makes_good_for_the_wrong_ones(log_in: Callable[..., int]) -> None:
    for _ in range(3):
        for _ in range(LOGIN_FAILURES - 1):
            assert log_in("wrong") == 401
        assert log_in(PASSWORD) == 303


def test_two_addresses_are_counted_apart(log_in: Callable[..., int]) -> None:
    for number in range(LOGIN_FAILURES):
        assert log_in("wrong", f"192.0.2.{number}") == 401
    for number in range(LOGIN_FAILURES):
        assert log_in(PASSWORD, f"192.0.2.{number}") == 303
