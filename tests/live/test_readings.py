"""Reading texts over a real socket: beside streams, and for clients that leave."""

from __future__ import annotations

import json
import queue
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from steerserve.contrast.examples import EXAMPLE_SETS
from tests.live.conftest import KEY

if TYPE_CHECKING:
    from tests.live.conftest import LiveServer

pytestmark = pytest.mark.slow

HEADERS = {"authorization": f"Bearer {KEY}"}


def open_client(live: LiveServer) -> httpx.Client:
    return httpx.Client(base_url=live.url, headers=HEADERS, timeout=60)


def stream_body(num_tokens: int) -> dict[str, Any]:
    return {
        "model": "tiny",
        "prompt": "Once",
        "max_tokens": num_tokens,
        "stream": True,
        "ignore_eos": True,
        "temperature": 0,
    }


def text_of(lines: list[str]) -> str:
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    return "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"])


@pytest.mark.parametrize("name", EXAMPLE_SETS)
def test_examples_are_contrasted_while_a_stream_goes_on(live: LiveServer, name: str) -> None:
    sets = EXAMPLE_SETS[name]
    body = {"positive": sets.positive, "negative": sets.negative, "limit": 5}
    with open_client(live) as client:
        with client.stream("POST", "/completions", json=stream_body(300)) as alone:
            expected = text_of(list(alone.iter_lines()))
        with client.stream("POST", "/completions", json=stream_body(300)) as response, open_client(live) as other:
            lines = response.iter_lines()
            first = next(lines)
            found = other.post("/features/contrast", json=body)
            rest = list(lines)
        assert len(found.raise_for_status().json()["data"]) == 5
        assert text_of([first, *rest]) == expected
        seen = client.post("/features/inspect", json={"text": sets.positive[0], "top": 2}).raise_for_status().json()
        assert len(seen["strongest"]["res0"]) == 2


def test_a_client_that_leaves_stops_its_reading(live: LiveServer, log_lines: queue.Queue[str]) -> None:
    """The engine's thread is held, so that the client is gone before more than one piece of its texts was read."""
    engine, is_held, may_go_on = live.runtime.engine, threading.Event(), threading.Event()
    num_pieces = 0

    def count(_: object) -> None:
        nonlocal num_pieces
        num_pieces += 1

    def hold() -> None:
        is_held.set()
        assert may_go_on.wait(timeout=60)

    body = {side: [f"{number:02}{side[0] * 118}" for number in range(40)] for side in ("positive", "negative")}
    with live.runtime.lens.hooked("blocks.0.hook_resid_post", count):
        holding = engine.run_exclusive(hold)
        assert is_held.wait(timeout=60)
        with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=live.url, headers=HEADERS, timeout=0.5) as client:
            client.post("/features/contrast", json=body)
        line = log_lines.get(timeout=60)
        while "contrast" not in line:
            line = log_lines.get(timeout=60)
        may_go_on.set()
        holding.result(timeout=60)
        engine.run_exclusive(lambda: None).result(timeout=60)
        assert num_pieces == 0
