"""Calls on the engine's thread: one between two steps, each with an answer or an error of its own."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import CancelledError
from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch

from steerserve.core.errors import QueueFullError, UnavailableError
from tests.engine.harness import Stepper, ask, fresh_engine, run

if TYPE_CHECKING:
    from steerserve.runtime import Runtime

TEXT = "Once upon a time"


def _fail() -> None:
    message = "the reading failed"
    raise LookupError(message)


def test_a_call_runs_on_the_engines_thread_in_inference_mode(llama: Runtime) -> None:
    def look() -> tuple[str, bool]:
        return threading.current_thread().name, torch.is_inference_mode_enabled()

    assert llama.engine.run_exclusive(look).result(timeout=30) == ("engine", True)


def test_at_most_one_call_runs_between_two_steps(llama: Runtime) -> None:
    with fresh_engine(llama, start=False) as engine:
        stepper = Stepper(engine)
        stepper.submit(ask(llama, TEXT, max_tokens=6))
        seen: list[int] = []
        calls = [engine.run_exclusive(lambda: seen.append(len(stepper.events[0]))) for _ in range(4)]
        for num_done in range(1, 5):
            stepper.step()
            assert [call.done() for call in calls] == [place < num_done for place in range(4)]
        assert seen == [2, 3, 4, 5]  # the first step computes the prompt and a token after its first
        stepper.finish()
        assert stepper.answer(0) == run(llama.engine, ask(llama, TEXT, max_tokens=6))[0]


def test_a_call_may_read_the_model_while_others_generate(llama: Runtime) -> None:
    ids = torch.tensor([llama.tokenizer.encode_plain(TEXT)])
    hook_name = "blocks.0.hook_resid_post"
    [alone] = run(llama.engine, ask(llama, TEXT, [{"feature": 3, "scale": 4.0}]))
    expected = llama.engine.run_exclusive(lambda: llama.lens.read(ids, [hook_name])[hook_name]).result(timeout=30)
    with fresh_engine(llama, start=False) as engine:
        stepper = Stepper(engine)
        stepper.submit(ask(llama, TEXT, [{"feature": 3, "scale": 4.0}]))
        calls = [engine.run_exclusive(lambda: llama.lens.read(ids, [hook_name])[hook_name]) for _ in range(3)]
        stepper.finish()
        assert all(torch.equal(call.result(), expected) for call in calls)
        assert stepper.answer(0) == alone


def test_a_call_that_raises_tells_its_caller_alone(llama: Runtime) -> None:
    with fresh_engine(llama, start=False) as engine:
        stepper = Stepper(engine)
        stepper.submit(ask(llama, TEXT))
        failing, after = engine.run_exclusive(_fail), engine.run_exclusive(lambda: 7)
        stepper.finish()
        with pytest.raises(LookupError, match="the reading failed"):
            failing.result()
        assert after.result() == 7
        assert stepper.answer(0).num_generated == 8


def test_a_call_that_was_cancelled_never_begins_and_takes_no_turn(llama: Runtime) -> None:
    with fresh_engine(llama, start=False) as engine:
        stepper = Stepper(engine)
        begun: list[str] = []
        gone = engine.run_exclusive(lambda: begun.append("gone"))
        waiting = engine.run_exclusive(lambda: begun.append("waiting"))
        assert gone.cancel()
        stepper.step()
        assert (begun, waiting.done()) == (["waiting"], True)
        with pytest.raises(CancelledError):
            gone.result()


async def test_whoever_stops_awaiting_a_call_cancels_it(llama: Runtime) -> None:
    with fresh_engine(llama, start=False) as engine:
        begun: list[bool] = []
        call = engine.run_exclusive(lambda: begun.append(True))

        async def wait_for_call() -> None:
            await asyncio.wrap_future(call)

        task = asyncio.create_task(wait_for_call())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        Stepper(engine).finish()
        assert call.cancelled()
        assert not begun


def test_stopping_refuses_the_calls_that_have_not_begun(llama: Runtime) -> None:
    with fresh_engine(llama) as engine:
        is_running, may_end = threading.Event(), threading.Event()

        def block() -> str:
            is_running.set()
            assert may_end.wait(timeout=30)
            return "done"

        under_way = engine.run_exclusive(block)
        assert is_running.wait(timeout=30)
        waiting = engine.run_exclusive(lambda: "never")
        engine._inbox.close()
        may_end.set()
        engine.stop()
        assert under_way.result() == "done"
        with pytest.raises(UnavailableError, match="stopped before this work was begun"):
            waiting.result(timeout=30)
        with pytest.raises(UnavailableError):
            engine.run_exclusive(lambda: "late")


def test_an_engine_that_never_started_refuses_its_calls_when_it_stops(llama: Runtime) -> None:
    with fresh_engine(llama, start=False) as engine:
        call = engine.run_exclusive(lambda: 1)
    with pytest.raises(UnavailableError):
        call.result(timeout=0)


def test_calls_over_the_limit_are_refused(llama: Runtime) -> None:
    with fresh_engine(llama, max_queue=2, start=False) as engine:
        for _ in range(2):
            engine.run_exclusive(lambda: 1)
        with pytest.raises(QueueFullError) as caught:
            engine.run_exclusive(lambda: 1)
        assert 1 <= caught.value.retry_after_s <= 60
        stepper = Stepper(engine)
        stepper.submit(ask(llama, TEXT, max_tokens=1))
        stepper.finish()
        assert engine.run_exclusive(lambda: 2).done() is False


def test_a_call_that_has_ended_is_held_by_nobody(llama: Runtime) -> None:
    class Held:
        pass

    def keep(held: Held) -> Held:
        return held

    def fail_with(held: Held) -> Held:
        raise LookupError(held)

    with fresh_engine(llama, start=False) as engine:
        held = Held()
        calls = [engine.run_exclusive(partial(fn, held)) for fn in (keep, fail_with)]
        Stepper(engine).finish()
        known = weakref.ref(held)
        gc.disable()
        try:
            del held, calls
            assert known() is None
        finally:
            gc.enable()
