"""The engine's life: ends of generations, aborts, faults and a full queue."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from steerserve.core.errors import EngineError, QueueFullError, SteerserveError, UnavailableError
from tests.engine.harness import Stepper, ask, fresh_engine, run
from tests.tiny import IM_END_ID

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from steerserve.engine.request import GenerationRequest, TokenEvent
    from steerserve.runtime import Runtime
    from tests.oracle import Oracle

FIRST_HOOK = "blocks.0.hook_resid_pre"
TEXT = "Once upon a time"


@pytest.fixture
def stepper(llama: Runtime) -> Iterator[Stepper]:
    """Step a fresh engine of four slots by hand."""
    with fresh_engine(llama, start=False) as engine:
        yield Stepper(engine)


@contextlib.contextmanager
def failing(runtime: Runtime, *, num_rows: int, num_tokens: int) -> Iterator[None]:
    """Let every forward pass of this shape raise."""

    def fail(resid: Tensor) -> None:
        if resid.shape[:2] == (num_rows, num_tokens):
            message = "the device has gone"
            raise RuntimeError(message)

    with runtime.lens.hooked(FIRST_HOOK, fail):
        yield


def overflowing(runtime: Runtime, **kwargs: Any) -> GenerationRequest:  # noqa: ANN401 any of SamplingParams
    """Ask for a change beyond float32: what a dictionary at many hook points in turn can come to."""
    request = ask(runtime, TEXT, [{"feature": 3, "scale": 1.0}], **kwargs)
    assert request.steering is not None
    edits = tuple(replace(edit, raw_scale=3e38) for edit in request.steering.edits)
    return replace(request, steering=replace(request.steering, edits=edits, strength=1e3))


def error_of(events: list[TokenEvent | Exception]) -> Exception | None:
    return events[-1] if events and isinstance(events[-1], Exception) else None


# Ends of a generation


@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("num_prompt", [1, 100, 127])
def test_a_generation_may_fill_the_context(model: str, num_prompt: int, request: pytest.FixtureRequest) -> None:
    runtime: Runtime = request.getfixturevalue(model)
    oracle: Oracle = request.getfixturevalue(f"{model}_oracle")
    num_tokens = min(128 - num_prompt, 28) if num_prompt > 1 else 127
    prompt = tuple(65 + place % 26 for place in range(num_prompt))
    with fresh_engine(runtime, slots=1) as engine:
        [answer] = run(engine, ask(runtime, prompt, max_tokens=num_tokens))
    assert (answer.finish_reason, answer.num_generated) == ("length", num_tokens)
    assert list(answer.token_ids) == oracle.generate(prompt, None, num_tokens)[0]


def test_no_tokens_wanted_reads_the_prompt_alone(llama: Runtime) -> None:
    [[event]] = llama.engine.generate([ask(llama, TEXT, max_tokens=0)])
    assert (event.text, event.token_ids, event.finish_reason) == ("", (), "length")
    assert (event.num_prompt_tokens, event.num_generated_tokens) == (len(TEXT), 0)


def test_one_token_is_one_event(llama: Runtime) -> None:
    [[event]] = llama.engine.generate([ask(llama, TEXT, max_tokens=1)])
    assert (len(event.token_ids), event.finish_reason, event.num_generated_tokens) == (1, "length", 1)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_across_tokens_ends_the_text_before_it(llama: Runtime, size: int, include: bool) -> None:
    [whole] = run(llama.engine, ask(llama, TEXT, max_tokens=30))
    stop = whole.text[10 : 10 + size]
    [cut] = run(llama.engine, ask(llama, TEXT, max_tokens=30, stop=("never", stop), include_stop=include))
    end = whole.text.index(stop)
    assert cut.text == whole.text[: end + size * include]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert len(cut.token_ids) == cut.num_generated == end + size


def test_the_start_of_a_stop_string_is_sent_when_the_text_ends_there(llama: Runtime) -> None:
    [whole] = run(llama.engine, ask(llama, TEXT, max_tokens=12))
    [held] = run(llama.engine, ask(llama, TEXT, max_tokens=12, stop=(whole.text[-3:] + "\x00",)))
    assert held.text == whole.text
    assert held.finish_reason == "length"


def test_an_end_of_sequence_at_the_first_token_gives_no_text(llama: Runtime) -> None:
    request = ask(llama, TEXT, ignore_eos=False, logit_bias={IM_END_ID: 100.0}, num_logprobs=1)
    [answer] = run(llama.engine, request)
    assert (answer.text, answer.token_ids, answer.logprobs) == ("", (), ())
    assert (answer.finish_reason, answer.stop_reason, answer.num_generated) == ("stop", None, 1)


def test_no_end_of_sequence_comes_before_min_tokens(llama: Runtime) -> None:
    request = ask(llama, TEXT, ignore_eos=False, logit_bias={IM_END_ID: 100.0}, min_tokens=3)
    [answer] = run(llama.engine, request)
    assert (len(answer.token_ids), answer.num_generated, answer.finish_reason) == (3, 4, "stop")


def test_no_stop_string_ends_a_text_before_min_tokens(llama: Runtime) -> None:
    [whole] = run(llama.engine, ask(llama, TEXT, max_tokens=12))
    stops = tuple(set(whole.text))
    [answer] = run(llama.engine, ask(llama, TEXT, max_tokens=12, stop=stops, min_tokens=5))
    assert answer.text == whole.text[:4]
    assert (answer.num_generated, answer.stop_reason) == (5, whole.text[4])


def test_an_ignored_end_of_sequence_is_a_token_like_others(llama: Runtime) -> None:
    [answer] = run(llama.engine, ask(llama, TEXT, logit_bias={IM_END_ID: 100.0}, max_tokens=4))
    assert answer.token_ids == (IM_END_ID,) * 4
    assert (answer.finish_reason, answer.text) == ("length", "")


def test_a_stop_token_ends_and_is_named(llama: Runtime) -> None:
    [whole] = run(llama.engine, ask(llama, TEXT, max_tokens=6))
    stop = whole.token_ids[3]
    [answer] = run(llama.engine, ask(llama, TEXT, max_tokens=6, stop_token_ids=(stop,)))
    assert answer.token_ids == whole.token_ids[: whole.token_ids.index(stop)]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)


def test_token_texts_join_to_the_text(llama: Runtime) -> None:
    # Bytes above 127 come one by one, so that most of them are parts of characters.
    bias = dict.fromkeys(range(0xC3, 0xC6), 20.0) | dict.fromkeys(range(0x80, 0x90), 20.0)
    request = ask(llama, TEXT, max_tokens=40, temperature=1.0, seed=5, logit_bias=bias)
    [events] = llama.engine.generate([request])
    assert "".join(text for event in events for text in event.token_texts) == "".join(event.text for event in events)
    assert sum(len(event.token_texts) for event in events) == 40


# Aborts


@pytest.mark.parametrize("num_steps", range(6))
def test_an_aborted_request_has_no_slot_and_gets_no_token_after_the_next_step(
    llama: Runtime, stepper: Stepper, num_steps: int
) -> None:
    """The prompt takes three steps: the abort comes while it waits, while it is read and while it generates."""
    long = ask(llama, "a" * 40, [{"feature": 3, "scale": 2.0}], max_tokens=30)
    [number] = stepper.submit(long)
    for _ in range(num_steps):
        stepper.step()
    seen = len(stepper.events[number])
    before = stepper.engine.stats()
    stepper.abort(number)
    stepper.abort(number)
    stepper.step()
    after = stepper.engine.stats()
    assert (after.num_running, after.num_waiting, after.num_aborted_total) == (0, 0, 1)
    assert after.num_generated_tokens_total == before.num_generated_tokens_total
    assert after.num_prompt_tokens_total == before.num_prompt_tokens_total
    assert len(stepper.events[number]) == seen
    assert not stepper.step()


def test_an_aborted_place_goes_to_who_waits(llama: Runtime) -> None:
    with fresh_engine(llama, slots=1, start=False) as engine:
        stepper = Stepper(engine)
        first, second = stepper.submit(ask(llama, "a", max_tokens=50), ask(llama, "b", max_tokens=2))
        stepper.step()
        stepper.abort(first)
        stepper.finish()
        assert stepper.answer(second).num_generated == 2


def test_an_abort_after_the_end_does_nothing(llama: Runtime, stepper: Stepper) -> None:
    [number] = stepper.submit(ask(llama, TEXT, max_tokens=2))
    stepper.finish()
    stepper.abort(number)
    assert not stepper.step()
    assert stepper.engine.stats().num_aborted_total == 0


async def test_a_stream_that_is_aborted_frees_its_slot(llama: Runtime) -> None:
    with fresh_engine(llama) as engine:
        [stream] = engine.submit([ask(llama, TEXT, max_tokens=100)])
        async for _ in stream:
            break
        stream.abort()
        [other] = engine.submit([ask(llama, "other", max_tokens=2)])
        assert [event.finish_reason async for event in other][-1] == "length"
        assert engine.stats().num_running == 0
        assert engine.stats().num_aborted_total == 1


async def test_streams_carry_what_generate_returns(llama: Runtime) -> None:
    requests = [ask(llama, f"{TEXT} {number}", max_tokens=5) for number in range(6)]
    expected = await asyncio.to_thread(llama.engine.generate, requests)
    streams = llama.submit(requests)
    texts = ["".join([event.text async for event in stream]) for stream in streams]
    assert texts == ["".join(event.text for event in events) for events in expected]


def test_a_stream_whose_event_loop_has_gone_gives_its_slot_back(llama: Runtime) -> None:
    with fresh_engine(llama, start=False) as engine:

        async def submit_and_leave() -> None:
            engine.submit([ask(llama, TEXT, max_tokens=100)])

        asyncio.run(submit_and_leave())
        stepper = Stepper(engine)
        stepper.finish()
        assert engine.stats().num_aborted_total == 1
        assert engine.stats().num_generated_tokens_total < 5


# Faults


def test_a_prompt_that_fails_takes_no_other_request_with_it(llama: Runtime, stepper: Stepper) -> None:
    good = ask(llama, TEXT, [{"feature": 3, "scale": 2.0}], max_tokens=10, num_logprobs=1)
    stepper.submit(good)
    stepper.finish()
    with failing(llama, num_rows=1, num_tokens=13):
        one, bad, two = stepper.submit(replace(good, prompt_ids=(*good.prompt_ids, 1)), ask(llama, "x" * 13), good)
        stepper.finish()
    assert isinstance(error_of(stepper.events[bad]), EngineError)
    assert stepper.answer(two) == stepper.answer(0)
    assert stepper.answer(one).num_generated == 10
    assert stepper.engine.stats().num_running == 0


def test_a_prompt_that_failed_is_computed_anew(llama: Runtime, stepper: Stepper) -> None:
    with failing(llama, num_rows=1, num_tokens=4):
        [bad] = stepper.submit(ask(llama, "x" * 20))
        stepper.finish()
    [good] = stepper.submit(ask(llama, "x" * 20))
    stepper.finish()
    assert error_of(stepper.events[bad]) is not None
    assert stepper.answer(good).num_generated == 8


def test_after_a_step_that_failed_the_engine_goes_on(llama: Runtime) -> None:
    requests = [ask(llama, f"{TEXT} {number}", [{"feature": 3, "scale": 2.0}], num_logprobs=1) for number in range(3)]
    with fresh_engine(llama) as engine:
        expected = run(engine, *requests)
    with fresh_engine(llama) as engine:
        with failing(llama, num_rows=3, num_tokens=1), pytest.raises(EngineError) as caught:
            engine.generate(requests)
        assert "device" not in str(caught.value)  # what is inside stays inside
        assert run(engine, *requests) == expected
        assert engine.stats().num_running == engine.stats().num_waiting == 0


def test_output_that_is_not_finite_ends_its_own_request_alone(llama: Runtime, stepper: Stepper) -> None:
    good = ask(llama, TEXT, [{"feature": 3, "scale": 2.0}], max_tokens=10, num_logprobs=1)
    stepper.submit(good)
    stepper.finish()
    numbers = stepper.submit(good, overflowing(llama), good)
    stepper.finish()
    assert isinstance(error_of(stepper.events[numbers[1]]), SteerserveError)
    assert stepper.answer(numbers[0]) == stepper.answer(numbers[2]) == stepper.answer(0)
    assert stepper.engine.stats().num_running == 0


# The queue


def test_a_full_queue_refuses_all_samples_or_none(llama: Runtime) -> None:
    with fresh_engine(llama, slots=2, max_queue=3, start=False) as engine:
        stepper = Stepper(engine)
        stepper.submit(*[ask(llama, TEXT)] * 4)
        with pytest.raises(QueueFullError) as caught:
            stepper.submit(*[ask(llama, TEXT)] * 2)
        assert 1 <= caught.value.retry_after_s <= 60
        stepper.submit(ask(llama, TEXT))
        with pytest.raises(QueueFullError):
            stepper.submit(ask(llama, TEXT))
        stepper.finish()
        assert engine.stats().num_requests_total == 5
        stepper.submit(ask(llama, TEXT))


def test_aborted_and_failed_requests_leave_the_queue(llama: Runtime) -> None:
    with fresh_engine(llama, slots=1, max_queue=2, start=False) as engine:
        stepper = Stepper(engine)
        for _ in range(4):
            numbers = stepper.submit(*[ask(llama, "y" * 5)] * 3)
            for number in numbers:
                stepper.abort(number)
            stepper.finish()
            with failing(llama, num_rows=1, num_tokens=7):
                stepper.submit(*[ask(llama, "x" * 7)] * 3)
                stepper.finish()
            stepper.submit(*[overflowing(llama)] * 3)
            stepper.finish()
        assert engine._inbox.num_pending == 0


def test_more_samples_than_may_wait_are_served_when_alone(llama: Runtime) -> None:
    with fresh_engine(llama, slots=2, max_queue=1) as engine:
        samples = [ask(llama, TEXT, temperature=1.0, sample_index=index, max_tokens=2) for index in range(7)]
        assert [answer.num_generated for answer in run(engine, *samples)] == [2] * 7


def test_many_threads_may_submit_at_once(llama: Runtime) -> None:
    expected = run(llama.engine, *(ask(llama, f"{number}", max_tokens=4) for number in range(8)))
    found: dict[int, Any] = {}

    def generate(number: int) -> None:
        [found[number]] = run(llama.engine, ask(llama, f"{number}", max_tokens=4))

    threads = [threading.Thread(target=generate, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert [found[number] for number in range(8)] == expected


# Start and stop


def test_stopping_ends_everyone_with_an_answer_or_an_error(llama: Runtime) -> None:
    with fresh_engine(llama, start=False) as engine:
        stepper = Stepper(engine)
        stepper.submit(*(ask(llama, f"{number} {TEXT}", max_tokens=100) for number in range(12)))
        stepper.step()
        stepper.step()
        engine.start()
        engine.stop()
    for events in stepper.events:
        last = events[-1]
        assert isinstance(last, EngineError) or (not isinstance(last, Exception) and last.finish_reason)
    assert any(isinstance(events[-1], EngineError) for events in stepper.events)


def test_starting_and_stopping_twice_is_starting_and_stopping_once(llama: Runtime) -> None:
    with fresh_engine(llama, start=False) as engine:
        engine.start()
        first = engine._thread
        engine.start()
        assert engine._thread is first
        assert run(engine, ask(llama, TEXT))[0].num_generated == 8
        engine.stop()
        engine.stop()
        engine.start()
        assert first is not None
        assert not first.is_alive()
        with pytest.raises(UnavailableError):
            engine.generate([ask(llama, TEXT)])


def test_stopping_what_never_started_does_nothing(llama: Runtime) -> None:
    with fresh_engine(llama, start=False) as engine:
        engine.stop()


def test_stats_count_what_was_done(llama: Runtime, stepper: Stepper) -> None:
    stepper.submit(ask(llama, "a" * 20, max_tokens=3))
    stepper.finish()
    stepper.submit(ask(llama, "a" * 20, max_tokens=3), ask(llama, "b", max_tokens=1))
    stepper.step()
    stats = stepper.engine.stats()
    assert (stats.num_requests_total, stats.num_cached_tokens_total, stats.num_slots) == (3, 20, 4)
    assert 0 < stats.kv_usage < 1
    stepper.finish()
    stats = stepper.engine.stats()
    assert (stats.num_prompt_tokens_total, stats.num_generated_tokens_total, stats.kv_usage) == (21, 7, 0)
