"""The judge: blind, both orders, resumed, and read for what it says; against an endpoint that answers by a rule."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

import pytest

from steerserve.core.errors import ConfigError
from steerserve.core.observer import SilentObserver, StoppedError
from steerserve.experiments.judge import JUDGEMENTS_FILE, Pair, _score, find_pairs, judge_pairs, win_rates
from steerserve.experiments.schema import JudgeFile
from tests.experiments.made import record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

ARMS = ("baseline", "pushed")


class Endpoint:
    """A chat endpoint that answers each question by a rule of its two texts."""

    def __init__(self, rule: Callable[[str, str], str]) -> None:
        self.rule = rule
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url = ""

    def answer(self, body: dict[str, Any]) -> str:
        self.asked.append(body)
        question = body["messages"][1]["content"]
        first = question.split("=== Answer A ===\n")[1].split("\n=== End of answer A ===")[0]
        second = question.split("=== Answer B ===\n")[1].split("\n=== End of answer B ===")[0]
        return self.rule(first, second)


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[str, str], str]], Endpoint]]:
    servers = []

    def start(rule: Callable[[str, str], str]) -> Endpoint:
        endpoint = Endpoint(rule)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                endpoint.keys.append(self.headers.get("authorization"))
                answer = {"choices": [{"message": {"content": endpoint.answer(body)}}]}
                data = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 the base's name
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
        return endpoint

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Follower(SilentObserver):
    """Follows without a word; stops after so many looks."""

    def __init__(self, looks: int = 1000) -> None:
        self._looks = looks

    @contextlib.contextmanager
    def stage(self, title: str, total: int) -> Iterator[Self]:
        assert title == "Judge any"
        assert total >= 0
        yield self

    def should_stop(self) -> bool:
        self._looks -= 1
        return self._looks < 0


def judge_at(url: str, criterion: str = "Which is about the sea?") -> JudgeFile:
    return JudgeFile(url=url, model="any", criterion=criterion)


def pairs_of(*texts: tuple[str, str]) -> list[Pair]:
    records = []
    for place, (first, other) in enumerate(texts):
        shared = {"key": f"k{place}", "prompt": f"prompt {place}"}
        records += [record("baseline", [first], [0.0], **shared), record("pushed", [other], [0.0], **shared)]
    return find_pairs(records, ARMS)


TEXTS = (("a hill", "the sea"), ("a road", "an ocean"), ("the sea", "a town"), ("one", "two"), ("same", "same"))


def by_sea(first: str, second: str) -> str:
    has_first, has_second = ("sea" in text or "ocean" in text for text in (first, second))
    return "tie" if has_first == has_second else "A" if has_first else "**B**, clearly."


async def test_a_judge_that_reads_gets_the_same_whatever_the_order(
    serve: Callable[..., Endpoint], tmp_path: Path
) -> None:
    endpoint, pairs = serve(by_sea), pairs_of(*TEXTS)
    judge = judge_at(endpoint.url)
    await judge_pairs(judge, pairs, tmp_path, "secret", Follower())
    (rate,) = win_rates(judge, pairs, tmp_path, ARMS)
    assert rate.rate is not None
    assert rate.rate.mean == pytest.approx((1 + 1 + 0 + 0.5 + 0.5) / 5)
    assert rate.rate.low is not None
    assert (rate.num_pairs, rate.num_equal, rate.num_unreadable, rate.agreement) == (5, 1, 0, 1.0)
    assert len(endpoint.asked) == 2 * 4
    assert set(endpoint.keys) == {"Bearer secret"}
    # Blind: nothing but the conversation, the texts and the criterion is told, and each text is in either place once.
    told = json.dumps(endpoint.asked)
    assert "pushed" not in told
    assert "baseline" not in told
    assert told.count("Answer A ===\\nthe sea") == told.count("Answer B ===\\nthe sea") == 2


async def test_a_judge_that_takes_whatever_comes_first_prefers_nobody(
    serve: Callable[..., Endpoint], tmp_path: Path
) -> None:
    endpoint, pairs = serve(lambda _first, _second: "A"), pairs_of(*TEXTS[:4])
    judge = judge_at(endpoint.url)
    await judge_pairs(judge, pairs, tmp_path, None, Follower())
    (rate,) = win_rates(judge, pairs, tmp_path, ARMS)
    assert rate.rate is not None
    assert (rate.rate.mean, rate.rate.low, rate.rate.high, rate.agreement) == (0.5, 0.5, 0.5, 0.0)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        *(("A", "a"), ("a", "a"), (" b.\n", "b"), ("**B**", "b"), ("Tie", "tie"), ("TIE!", "tie")),
        *(("It's a tie.", "tie"), ("A tie", "tie"), ("a tie, I think", "tie"), ("I call it a Tie", "tie")),
        *(("As a judge I prefer B.", "b"), ("Answer: A", "a"), ("Answer A is a better answer.", "a")),
        *(("A, because B is dull", "a"), ("**B**: unlike A it has a sea.", "b"), ("B\n\nA is dull.", "b")),
        *(("A is better than B.", None), ("A is worse than B.", None), ("", None), ("Neither.", None)),
        *(("I am a judge.", None), ("Abba ties bab", None), ("not a tie, B", None)),
    ],
)
def test_a_reply_is_read_for_the_answer_and_not_for_an_article(reply: str, verdict: str | None) -> None:
    found = [_score(reply, own=mine) for mine in ("a", "b")]
    assert found == {"a": [1, 0], "b": [0, 1], "tie": [0.5, 0.5], None: [None, None]}[verdict]


async def test_answers_that_cannot_be_read_count_for_nothing(serve: Callable[..., Endpoint], tmp_path: Path) -> None:
    endpoint, pairs = serve(lambda first, _second: "" if "hill" in first else "B"), pairs_of(*TEXTS[:3])
    judge = judge_at(endpoint.url)
    await judge_pairs(judge, pairs, tmp_path, None, Follower())
    (rate,) = win_rates(judge, pairs, tmp_path, ARMS)
    assert (rate.num_pairs, rate.num_unreadable) == (2, 1)


async def test_nothing_is_asked_twice_and_another_criterion_is_another_question(
    serve: Callable[..., Endpoint], tmp_path: Path
) -> None:
    endpoint, pairs = serve(by_sea), pairs_of(*((f"a{place}", f"b{place}") for place in range(6)))
    judge = judge_at(endpoint.url)
    with pytest.raises(StoppedError, match="same command to continue"):
        await judge_pairs(judge, pairs, tmp_path, None, Follower(1))
    assert len(endpoint.asked) == 8
    file = tmp_path / JUDGEMENTS_FILE
    file.write_bytes(file.read_bytes() + b'{"key": "ha')
    await judge_pairs(judge, pairs, tmp_path, None, Follower())
    assert len(endpoint.asked) == 12
    await judge_pairs(judge, pairs, tmp_path, None, Follower())
    assert len(endpoint.asked) == 12
    (rate,) = win_rates(judge, pairs, tmp_path, ARMS)
    assert rate.num_pairs == 6
    other = judge_at(endpoint.url, "Which is longer?")
    assert win_rates(other, pairs, tmp_path, ARMS)[0].rate is None


async def test_an_endpoint_that_refuses_ends_it_with_a_sentence(tmp_path: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(401)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 the base's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        judge = judge_at(f"http://127.0.0.1:{server.server_port}/v1")
        with pytest.raises(ConfigError, match=r"refuses requests.*The judgements so far are kept"):
            await judge_pairs(judge, pairs_of(*TEXTS), tmp_path, None, Follower())
        server.shutdown()
