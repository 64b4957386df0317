"""Scoring one text after the other, whoever waits for the engine, leaves or stops meanwhile."""

from __future__ import annotations

import functools
import threading
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING

import pytest

from steerserve.compare.arms import Arm
from steerserve.compare.running import ScoringQueue
from steerserve.compare.scoring import Scorer
from steerserve.core.errors import QueueFullError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from steerserve.compare.metrics import SampleScore
    from steerserve.runtime import Runtime

    Call = Callable[[], SampleScore | None]

PROMPT, TEXT = (65, 66, 67), (68, 69, 70, 71)


def scorer_of(runtime: Runtime) -> Scorer:
    return Scorer(runtime.lens, runtime.engine.median_norms, [], (65,))


@pytest.fixture
def arm() -> Arm:
    return Arm("arm", PROMPT)


def test_a_line_that_is_full_for_a_moment_is_waited_for(llama: Runtime, arm: Arm) -> None:
    num_refused = 0

    def refuse_twice(call: Call) -> Future[SampleScore | None]:
        nonlocal num_refused
        if num_refused < 2:
            num_refused += 1
            raise QueueFullError("others read")
        return llama.engine.run_exclusive(call)

    line = ScoringQueue(refuse_twice)
    expected = llama.scoring.submit(scorer_of(llama), arm, TEXT, lambda: True).result(timeout=60)
    assert line.submit(scorer_of(llama), arm, TEXT, lambda: True).result(timeout=60) == expected
    assert num_refused == 2
    line.stop()


def test_what_nobody_wants_is_not_scored(llama: Runtime, arm: Arm) -> None:
    line = ScoringQueue(llama.engine.run_exclusive)
    with pytest.raises(CancelledError):
        line.submit(scorer_of(llama), arm, TEXT, lambda: False).result(timeout=60)
    line.stop()


def test_the_prompts_of_one_comparison_alone_are_in_memory(llama: Runtime, arm: Arm) -> None:
    line = ScoringQueue(llama.engine.run_exclusive)
    first, second = scorer_of(llama), scorer_of(llama)
    for scorer in (first, second):
        line.submit(scorer, arm, TEXT, lambda: True).result(timeout=60)
        assert scorer._prompts
    assert not first._prompts
    line.release(second)
    with line._lock:
        done = line._queue(lambda: None)
    done.result(timeout=60)
    assert not second._prompts
    line.stop()


@pytest.mark.parametrize(("most", "expected"), [(16, "aaaaabbbb"), (2, "aabbaabba"), (1, "ababababa")])
def test_comparisons_at_once_take_turns_of_several_texts(
    llama: Runtime, arm: Arm, monkeypatch: pytest.MonkeyPatch, most: int, expected: str
) -> None:
    monkeypatch.setattr("steerserve.compare.running._MAX_IN_TURN", most)
    may_go_on = threading.Event()

    def run(call: Call) -> Future[SampleScore | None]:
        assert may_go_on.wait(timeout=60)
        return llama.engine.run_exclusive(call)

    line = ScoringQueue(run)
    scorers = {"a": scorer_of(llama), "b": scorer_of(llama)}
    order: list[str] = []

    def note(name: str, _: Future[SampleScore]) -> None:
        order.append(name)

    futures = []
    for name in "ababababa":
        futures.append(line.submit(scorers[name], arm, TEXT, lambda: True))
        futures[-1].add_done_callback(functools.partial(note, name))
    may_go_on.set()
    results = [future.result(timeout=60) for future in futures]
    line.stop()
    assert "".join(order) == expected
    assert len({score.surprise for score in results}) == 1


def test_a_text_that_nobody_waits_for_any_more_takes_no_turn(llama: Runtime, arm: Arm) -> None:
    is_held, may_go_on, num_pieces = threading.Event(), threading.Event(), 0

    def run(call: Call) -> Future[SampleScore | None]:
        nonlocal num_pieces
        num_pieces += 1
        is_held.set()
        assert may_go_on.wait(timeout=60)
        return llama.engine.run_exclusive(call)

    line, scorer = ScoringQueue(run), scorer_of(llama)
    first, second = (line.submit(scorer, arm, TEXT, lambda: True) for _ in range(2))
    assert is_held.wait(timeout=60)
    assert second.cancel()
    may_go_on.set()
    first.result(timeout=60)
    num_before = num_pieces
    line.stop()
    assert num_pieces == num_before


def test_a_line_that_has_stopped_says_so(llama: Runtime, arm: Arm) -> None:
    is_held, may_go_on = threading.Event(), threading.Event()

    def hold(_: Call) -> Future[SampleScore | None]:
        is_held.set()
        assert may_go_on.wait(timeout=60)
        raise UnavailableError("The server is stopping.")

    line = ScoringQueue(hold)
    running, waiting = (line.submit(scorer_of(llama), arm, TEXT, lambda: True) for _ in range(2))
    assert is_held.wait(timeout=60)
    stopping = threading.Thread(target=line.stop)
    stopping.start()
    may_go_on.set()
    stopping.join(timeout=60)
    with pytest.raises(UnavailableError):
        running.result(timeout=60)
    assert waiting.cancelled() or isinstance(waiting.exception(), UnavailableError)
    with pytest.raises(UnavailableError):
        line.submit(scorer_of(llama), arm, TEXT, lambda: True)
    line.release(scorer_of(llama))
    line.stop()
