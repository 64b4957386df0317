"""Comparisons over a real socket: their bytes, other streams beside them, and clients that leave."""

from __future__ import annotations

import http.client
import json
import re
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.live.test_disconnect import ask_once, line_of
from tests.live.test_wire import HEADERS, chat, posted

if TYPE_CHECKING:
    import queue

    from tests.live.conftest import LiveServer

pytestmark = pytest.mark.slow

COMPARE = "/v1/compare"
EVENT = re.compile(rb"(?:event: [a-z.]+\n)?data: [^\r\n]+\n\n|: ping\n\n")
ARMS: list[dict[str, Any]] = [
    {"name": "base"},
    {"name": "steered", "steering": [{"feature": 3, "scale": 4.0}]},
    {"name": "later", "steering": [{"feature": 3, "scale": 4.0, "positions": "generated"}]},
]


def test_a_stream_is_named_events_of_one_line_and_the_end_mark(live: LiveServer) -> None:
    with posted(live, chat(stream=True, arms=ARMS), COMPARE) as response:
        assert response.getheader("content-type") == "text/event-stream; charset=utf-8"
        body = response.read()
    events = EVENT.findall(body)
    assert b"".join(events) == body
    assert events[-1] == b"data: [DONE]\n\n"
    assert events[-2].startswith(b"event: comparison.done\ndata: {")
    whole = json.loads(events[-2].partition(b"data: ")[2])
    assert [arm["name"] for arm in whole["arms"]] == ["base", "steered", "later"]


def test_a_client_that_leaves_frees_all_slots(live: LiveServer, log_lines: queue.Queue[str]) -> None:
    before = live.runtime.stats()
    long = chat(stream=True, arms=ARMS, n=2, max_tokens=None, ignore_eos=True)
    with posted(live, long, COMPARE, request_id="compare-leaver-1") as response:
        response.read(1)
    assert "finish=abort" in line_of("compare-leaver-1", log_lines)
    ask_once(live)
    after = live.runtime.stats()
    assert after.num_aborted_total == before.num_aborted_total + 6
    assert (after.num_running, after.num_waiting) == (0, 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_while_it_is_measured_ends_that(
    live: LiveServer, log_lines: queue.Queue[str], monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """Scoring is held at its first piece until the client has gone; nothing of what is left is computed then."""
    is_held, may_go_on, num_pieces = threading.Event(), threading.Event(), 0
    run_exclusive = live.runtime.scoring._run_exclusive

    def hold(call: Any) -> Any:  # noqa: ANN401 passed on
        nonlocal num_pieces
        num_pieces += 1
        is_held.set()
        assert may_go_on.wait(timeout=60)
        return run_exclusive(call)

    monkeypatch.setattr(live.runtime.scoring, "_run_exclusive", hold)
    name = f"compare-leaver-{stream}"
    with closing(http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)) as connection:
        connection.request("POST", COMPARE, chat(stream=stream, arms=ARMS, n=2), HEADERS | {"x-request-id": name})
        assert is_held.wait(timeout=60)
    line_of(name, log_lines)
    may_go_on.set()
    with live.runtime.scoring._lock:
        released = live.runtime.scoring._queue(lambda: None)
    released.result(timeout=60)
    assert num_pieces == 1
    assert live.runtime.scoring._current is None
    ask_once(live)


def test_other_streams_go_on_while_texts_are_measured(live: LiveServer) -> None:
    body = chat(stream=True, max_tokens=200, ignore_eos=True, temperature=0)
    with posted(live, body) as alone:
        expected = text_of(alone.read())
    with posted(live, body) as beside, posted(live, chat(arms=ARMS, n=2), COMPARE) as compared:
        assert compared.status == 200
        assert len(json.loads(compared.read())["arms"]) == 3
        assert text_of(beside.read()) == expected


def text_of(body: bytes) -> str:
    lines = [line.removeprefix(b"data: ") for line in body.split(b"\n\n") if line.startswith(b"data: {")]
    choices = [choice for line in lines for choice in json.loads(line)["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)
