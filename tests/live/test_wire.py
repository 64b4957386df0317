"""What goes over the socket, byte by byte."""

from __future__ import annotations

import http.client
import json
import re
import socket
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from sse_starlette.sse import AppStatus

from tests.live.conftest import KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.live.conftest import LiveServer

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
HEADERS = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
EVENT = re.compile(rb"data: [^\r\n]+\n\n")


def chat(**fields: object) -> str:
    return json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8} | fields)


@contextmanager
def posted(
    live: LiveServer, body: str | bytes, path: str = CHAT, *, request_id: str = "some"
) -> Iterator[http.client.HTTPResponse]:
    with closing(http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)) as connection:
        connection.request("POST", path, body, HEADERS | {"x-request-id": request_id})
        yield connection.getresponse()


@pytest.mark.parametrize(("path", "fields"), [(CHAT, {"n": 3}), ("/v1/completions", {"prompt": "a", "echo": True})])
def test_a_stream_is_events_of_one_line_and_the_end_mark(live: LiveServer, path: str, fields: dict[str, Any]) -> None:
    with posted(live, chat(stream=True, stream_options={"include_usage": True}, **fields), path) as response:
        assert response.status == 200
        assert response.getheader("content-type") == "text/event-stream; charset=utf-8"
        body = response.read()
    events = EVENT.findall(body)
    assert b"".join(events) == body
    assert events[-1] == b"data: [DONE]\n\n"
    assert all(json.loads(event[6:]) for event in events[:-1])


def test_the_connection_can_be_used_again_after_a_stream(live: LiveServer) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)) as connection:
        for _ in range(3):
            connection.request("POST", CHAT, chat(stream=True), HEADERS)
            assert connection.getresponse().read().endswith(b"data: [DONE]\n\n")


def test_silence_is_filled_with_bare_comments(live: LiveServer) -> None:
    long = chat(stream=True, max_tokens=None, ignore_eos=True)
    with posted(live, long) as first, posted(live, long) as second:  # both slots
        first.read(1)
        second.read(1)
        with posted(live, chat(stream=True)) as waiting:
            assert waiting.read(8) == b": ping\n\n"


def test_a_stream_that_outlasts_a_stopping_server_ends_with_an_error(
    live: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with posted(live, chat(stream=True, max_tokens=None, ignore_eos=True)) as response:
        response.read(1)
        monkeypatch.setattr(AppStatus, "should_exit", True)  # as uvicorn does on SIGTERM
        *_, error, done, rest = response.read().split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "service_unavailable"


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", '"\\ud800"', "[" * 3000, "9" * 5000, '{"a":1,"a":2}'])
def test_odd_values_are_the_clients_mistake(live: LiveServer, value: str) -> None:
    with posted(live, chat()[:-1] + f', "temperature": {value}}}') as response:
        assert response.status == 400
        assert json.loads(response.read())["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("size", [65_537, 600_000])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_over_the_limit_is_413_for_a_client_that_sends_it_all(
    live: LiveServer, size: int, is_chunked: bool
) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)) as connection:
        body = [b"x" * 1000 for _ in range(size // 1000)] + [b"x" * (size % 1000)]
        connection.request("POST", CHAT, body if is_chunked else b"".join(body), HEADERS, encode_chunked=is_chunked)
        response = connection.getresponse()
        assert response.status == 413
        assert json.loads(response.read())["error"]["code"] == "request_too_large"


def test_a_client_that_asks_first_is_told_413_before_it_sends(live: LiveServer) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nauthorization: Bearer {KEY}\r\n"
    with socket.create_connection(("127.0.0.1", live.port), timeout=60) as connection:
        connection.sendall(f"{head}content-length: 10000000\r\nexpect: 100-continue\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x00\xff\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: many\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        b"GET /v1/models?" + b"x" * 200_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
def test_what_is_no_http_is_the_clients_mistake(live: LiveServer, request_bytes: bytes) -> None:
    with socket.create_connection(("127.0.0.1", live.port), timeout=60) as connection:
        connection.sendall(request_bytes)
        assert re.match(rb"HTTP/1.1 4\d\d ", connection.recv(1000))


@pytest.mark.parametrize(
    "line",
    [b"HEAD /v1/models", b"OPTIONS *", b"OPTIONS /v1/models", b"BREW /v1/models", b"GET /%00%0a%ff", b"GET //"],
)
def test_odd_requests_are_the_clients_mistake(live: LiveServer, line: bytes) -> None:
    with socket.create_connection(("127.0.0.1", live.port), timeout=60) as connection:
        connection.sendall(line + b" HTTP/1.1\r\nhost: [::\r\nx-request-id: \xff\r\n\r\n")
        assert re.match(rb"HTTP/1.1 4\d\d ", connection.recv(1000))
