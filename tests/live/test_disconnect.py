"""A client that goes away gives its place back."""

from __future__ import annotations

import http.client
import threading
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest

from tests.live.test_wire import CHAT, HEADERS, chat, posted

if TYPE_CHECKING:
    import queue
    from collections.abc import Iterable

    from steerserve.engine.request import GenerationRequest
    from steerserve.engine.stream import TokenStream
    from tests.live.conftest import LiveServer

pytestmark = pytest.mark.slow

LONG = {"max_tokens": None, "ignore_eos": True}
WAIT_S = 60


def test_a_client_that_leaves_in_mid_stream_frees_its_slot(live: LiveServer, log_lines: queue.Queue[str]) -> None:
    before = live.runtime.stats()
    with posted(live, chat(stream=True, **LONG), request_id="leaver-1") as response:
        response.read(1)
    assert "finish=abort" in line_of("leaver-1", log_lines)
    ask_once(live)  # the engine has stepped, so it has seen the abort
    after = live.runtime.stats()
    assert after.num_aborted_total == before.num_aborted_total + 1
    assert (after.num_running, after.num_waiting) == (0, 0)
    assert after.num_generated_tokens_total - before.num_generated_tokens_total < live.runtime.context_length // 2


def test_a_client_that_leaves_before_its_plain_answer_frees_its_slot(
    live: LiveServer, log_lines: queue.Queue[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_submitted = watch_submits(live, monkeypatch)
    before = live.runtime.stats()
    with closing(http.client.HTTPConnection("127.0.0.1", live.port, timeout=WAIT_S)) as connection:
        connection.request("POST", CHAT, chat(n=2, **LONG), HEADERS | {"x-request-id": "leaver-2"})
        assert is_submitted.wait(WAIT_S)
    assert "status=499" in line_of("leaver-2", log_lines)
    ask_once(live)
    after = live.runtime.stats()
    assert after.num_aborted_total == before.num_aborted_total + 2
    assert (after.num_running, after.num_waiting) == (0, 0)


def test_a_client_that_leaves_while_it_waits_gives_up_its_place(
    live: LiveServer, log_lines: queue.Queue[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with posted(live, chat(stream=True, n=2, **LONG)) as running:
        running.read(1)  # all slots are taken
        is_submitted = watch_submits(live, monkeypatch)
        with closing(http.client.HTTPConnection("127.0.0.1", live.port, timeout=WAIT_S)) as connection:
            connection.request("POST", CHAT, chat(stream=True), HEADERS | {"x-request-id": "leaver-3"})
            assert is_submitted.wait(WAIT_S)
        line = line_of("leaver-3", log_lines)
    assert "generated_tokens=0" in line
    assert "finish=abort" in line


def test_forty_clients_that_vanish_leave_nothing_behind(live: LiveServer, log_lines: queue.Queue[str]) -> None:
    with ExitStack() as stack:
        body = chat(stream=True, n=2, **LONG)
        responses = [stack.enter_context(posted(live, body, request_id=f"crowd-{number}-")) for number in range(2)]
        connections = [
            stack.enter_context(closing(http.client.HTTPConnection("127.0.0.1", live.port, timeout=WAIT_S)))
            for _ in range(38)
        ]
        for number, connection in enumerate(connections):
            headers = HEADERS | {"x-request-id": f"crowd-{number + 2}-"}
            connection.request("POST", CHAT, chat(stream=True, **LONG), headers)
        responses[0].read(1)
    waited_for = {f"crowd-{number}-" for number in range(40)}
    while waited_for:
        line = log_lines.get(timeout=WAIT_S)
        waited_for -= {name for name in waited_for if name in line}
    ask_once(live)
    stats = live.runtime.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)


def line_of(request_id: str, log_lines: queue.Queue[str]) -> str:
    """Wait for the line of one request; lines of earlier ones may still come."""
    while request_id not in (line := log_lines.get(timeout=WAIT_S)):
        pass
    return line


def ask_once(live: LiveServer) -> None:
    with posted(live, chat(max_tokens=2)) as response:
        assert response.status == 200
        response.read()


def watch_submits(live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return an event that is set when the next request has been handed to the engine."""
    is_submitted = threading.Event()
    submit = live.runtime.submit

    def submit_and_tell(requests: Iterable[GenerationRequest]) -> list[TokenStream]:
        streams = submit(tuple(requests))
        is_submitted.set()
        return streams

    monkeypatch.setattr(live.runtime, "submit", submit_and_tell)
    return is_submitted
