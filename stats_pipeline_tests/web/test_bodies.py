"""Limits of a body: length, type, text. After every rejection the database holds no job and no message."""

from collections.abc import Iterator

import httpx
import pytest

from stats_pipeline_tests.web.conftest import ENQUEUE

pytestmark = pytest.mark.usefixtures("nothing_is_enqueued")

PAYLOAD = {"triggeredBy": "admin", "requestId": "1"}


def test_a_body_of_more_than_64_kib_is_refused(server: httpx.Client) -> None:
    long = {**PAYLOAD, "userId": "x" * 65_536}
    assert server.post(ENQUEUE, json=long).status_code == 413


def test_a_body_of_unknown_length_is_counted_as_it_comes(server: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"triggeredBy": "admin", "requestId": "1", "userId": "'
        for _ in range(200):
            yield b"x" * 1_000

    response = server.post(ENQUEUE, content=chunks(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413


@pytest.mark.usefixtures("enqueues")
def test_a_body_of_just_64_kib_is_taken(server: httpx.Client) -> None:
    start = '{"triggeredBy":"admin","requestId":"1","userId":"'
    body = start + "x" * (65_000 - len(start)) + '"}'
    assert server.post(ENQUEUE, content=body, headers={"Content-Type": "application/json"}).status_code == 202


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/xml"])
def test_a_body_that_is_not_json_by_its_name_is_refused(server: httpx.Client, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    body = b'{"triggeredBy": "admin", "requestId": "1"}'
    assert server.post(ENQUEUE, content=body, headers=headers).status_code == 415


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"triggeredBy": "admin", "requestId": NaN}',
        b'{"triggeredBy": "admin", "requestId": "\\u0000"}',
        b'{"triggeredBy": "admin", "requestId": "1", "userId": "a\\u0000b"}',
        b'{"triggeredBy": "admin", "requestId": "\\ud800"}',
        b'{"triggeredBy": "admin", "requestId": "1", "more": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"triggeredBy": "admin", "requestId": "1", "more": ' + b"[" * 900 + b"}",
        b'{"triggeredBy": "admin", "requestId": "1", "matchId": ' + b"9" * 5_000 + b"}",
        b'{"triggeredBy": "admin", "requestId": "1", "matchId": 1e400}',
    ],
)
def test_a_body_that_cannot_be_read_or_stored_is_refused(server: httpx.Client, body: bytes) -> None:
    response = server.post(ENQUEUE, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert response.json().keys() == {"success", "error"}


def test_an_error_repeats_nothing_of_the_payload(server: httpx.Client) -> None:
    secret = "what the caller sent"
    for payload in (
        {"triggeredBy": secret, "requestId": secret},
        {"triggeredBy": "admin", "requestId": "1", "matchId": secret},
        {"triggeredBy": "admin", "requestId": "1", "userId": secret + "\0"},
    ):
        response = server.post(ENQUEUE, json=payload)
        assert response.status_code == 400
        assert secret not in response.text
