"""A request gives the same bits alone and among others, whatever they are and whatever becomes of them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.harness import Answer, Stepper, ask, fresh_engine
from tests.tiny import D_MODEL

if TYPE_CHECKING:
    from steerserve.engine.request import GenerationRequest
    from steerserve.runtime import Runtime

SHARED = "<|im_start|>system\nA long beginning that several have in common.<|im_end|>\n"
LONG = SHARED + "and much more of it"
VECTOR = {"hook": "blocks.1.hook_resid_pre", "values": [0.5] * D_MODEL}
INSIDE = [
    {"vector": {"hook": f"blocks.{layer}.{kind}", "values": [1.0, -0.7] * (D_MODEL // 2)}, "scale": 1.5, **rest}
    for layer in range(2)
    for kind in ("attn.hook_z", "hook_attn_out", "hook_resid_mid", "hook_mlp_out")
    for rest in ({}, {"positions": "generated", "start": 2})
]

REQUESTS: list[tuple[str, Any, dict[str, Any]]] = [
    (SHARED, None, {"max_tokens": 12, "num_logprobs": 5}),
    (SHARED, [{"feature": 3, "scale": 8.0}], {"max_tokens": 9, "num_logprobs": 5}),
    (SHARED, [{"feature": 3, "scale": 8.0, "positions": "generated", "start": 1, "stop": 5}], {"num_logprobs": 2}),
    (LONG, [{"feature": 3, "scale": 8.0}], {"max_tokens": 10, "num_logprobs": 3}),
    (LONG, [{"feature": 5, "dictionary": "topk", "mode": "clamp", "scale": 4.0}], {"num_logprobs": 3}),
    (LONG, None, {"max_tokens": 7, "temperature": 1.0, "seed": 5, "top_p": 0.9, "num_logprobs": 1}),
    ("x", None, {"max_tokens": 20, "num_logprobs": 1}),
    ("x", [{"feature": 9, "mode": "remove"}], {"max_tokens": 3, "temperature": 0.7, "seed": 9, "num_logprobs": 1}),
    (
        "a ~ sink",
        [{"feature": 9, "scale": 1e6, "special_tokens": True}, {"vector": VECTOR, "scale": -3.0}],
        {"num_logprobs": 1, "max_tokens": 15},
    ),
    (
        "many edits",
        [{"feature": place, "scale": 0.5} for place in range(20)]
        + [{"feature": 3, "dictionary": "gated", "mode": "ablate"}, {"feature": 3, "dictionary": "late", "scale": 4.0}],
        {"num_logprobs": 1, "max_tokens": 8},
    ),
    (
        SHARED + "sampled",
        [{"feature": 4, "mode": "multiply", "scale": 3.0, "positions": "prompt"}],
        {"temperature": 1.3, "seed": 1, "repetition_penalty": 1.3, "presence_penalty": 0.5, "num_logprobs": 2},
    ),
    (SHARED + "read", [{"feature": 4, "scale": 3.0}], {"max_tokens": 4, "num_prompt_logprobs": 2, "num_logprobs": 0}),
    ("only read", None, {"max_tokens": 0, "num_prompt_logprobs": 1}),
    ("inside blocks", INSIDE, {"max_tokens": 11, "num_logprobs": 4}),
    (
        "features inside blocks",
        [
            {"feature": 3, "dictionary": "mlp", "mode": "clamp", "scale": 5.0},
            {"feature": 4, "dictionary": "z", "scale": 2.0},
        ],
        {"max_tokens": 9, "num_logprobs": 4},
    ),
]
NUMBER = st.integers(0, len(REQUESTS) - 1)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), NUMBER),
        st.tuples(st.just("step"), st.integers(1, 4)),
        st.tuples(st.just("abort"), st.integers(0, 30)),
    ),
    min_size=5,
    max_size=40,
)
FEW = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _request(runtime: Runtime, number: int) -> GenerationRequest:
    prompt, steering, sampling = REQUESTS[number]
    return ask(runtime, prompt, steering, **sampling)


@functools.cache
def alone(runtime: Runtime, number: int, chunk: int) -> Answer:
    """Return the answer of an engine that never saw another request."""
    with fresh_engine(runtime, slots=1, chunk=chunk, start=False) as engine:
        stepper = Stepper(engine)
        stepper.submit(_request(runtime, number))
        stepper.finish()
        return stepper.answer(0)


LLAMA_SIZES = [
    ("llama", 1, 16),
    ("llama", 3, 16),
    ("llama", 16, 16),
    ("llama", 16, 7),
    ("llama", 3, 64),
    ("llama", 5, 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "slots", "chunk"), [*LLAMA_SIZES, ("gpt2", 3, 16), ("gpt2", 16, 16)])
def test_a_request_has_the_same_bits_alone_and_among_all_others(
    request: pytest.FixtureRequest, model: str, slots: int, chunk: int
) -> None:
    runtime: Runtime = request.getfixturevalue(model)
    order = [*range(len(REQUESTS)), *reversed(range(len(REQUESTS)))]
    with fresh_engine(runtime, slots=slots, chunk=chunk, start=False) as engine:
        stepper = Stepper(engine)
        stepper.submit(*(_request(runtime, number) for number in order))
        stepper.finish()
        for place, number in enumerate(order):
            assert stepper.answer(place) == alone(runtime, number, chunk), REQUESTS[number]


@pytest.mark.slow
@FEW
@given(actions=ACTIONS, slots=st.sampled_from([1, 2, 3, 5, 16]), chunk=st.sampled_from([5, 16, 32]))
def test_no_order_of_arrivals_steps_and_aborts_changes_a_requests_bits(
    llama: Runtime, actions: list[tuple[str, int]], slots: int, chunk: int
) -> None:
    with fresh_engine(llama, slots=slots, chunk=chunk, start=False) as engine:
        stepper = Stepper(engine)
        asked: list[int] = []
        aborted: set[int] = set()
        for action, number in actions:
            if action == "submit":
                stepper.submit(_request(llama, number))
                asked.append(number)
            elif action == "step":
                for _ in range(number):
                    stepper.step()
            elif number < len(asked):
                stepper.abort(number)
                aborted.add(number)
        stepper.finish()
        for place, number in enumerate(asked):
            if place in aborted and not _is_whole(stepper, place):
                continue
            assert stepper.answer(place) == alone(llama, number, chunk), REQUESTS[number]
        assert engine.stats().num_running == engine.stats().num_waiting == 0


def _is_whole(stepper: Stepper, place: int) -> bool:
    """Return whether a request was done before its abort came."""
    last = stepper.events[place][-1] if stepper.events[place] else None
    return getattr(last, "finish_reason", None) is not None


def test_samples_of_one_request_share_its_prompt_and_equal_separate_runs(llama: Runtime) -> None:
    samples = [
        ask(llama, LONG, [{"feature": 3, "scale": 4.0}], temperature=1.0, seed=3, sample_index=index, num_logprobs=1)
        for index in range(4)
    ]
    with fresh_engine(llama, start=False) as engine:
        stepper = Stepper(engine)
        stepper.submit(*samples)
        stepper.finish()
        together = [stepper.answer(place) for place in range(4)]
        last = [events[-1] for events in stepper.events]
    for place, sample in enumerate(samples):
        with fresh_engine(llama, start=False) as engine:
            stepper = Stepper(engine)
            stepper.submit(sample)
            stepper.finish()
            assert stepper.answer(0) == together[place]
    assert len({answer.token_ids for answer in together}) == 4
    num_prompt = len(samples[0].prompt_ids)
    assert [getattr(event, "num_cached_tokens", None) for event in last] == [0, num_prompt, num_prompt, num_prompt]


def test_another_prompt_side_edit_does_not_share_the_prompt(llama: Runtime) -> None:
    plain, generated, all_positions = (
        ask(llama, LONG, steering)
        for steering in (
            None,
            [{"feature": 3, "scale": 4.0, "positions": "generated"}],
            [{"feature": 3, "scale": 4.0}],
        )
    )
    with fresh_engine(llama, start=False) as engine:
        stepper = Stepper(engine)
        for request in (plain, generated, all_positions, all_positions):
            stepper.submit(request)
            stepper.finish()
        cached = [getattr(events[-1], "num_cached_tokens", None) for events in stepper.events]
    num_prompt = len(plain.prompt_ids)
    assert cached == [0, num_prompt, 0, num_prompt]


@pytest.mark.parametrize(
    "steering",
    [
        {"edits": [{"feature": 3, "mode": "clamp", "scale": 9.0}, {"feature": 4, "mode": "remove"}], "strength": 0},
        [{"feature": 3, "scale": 0.0}],
        [{"feature": 3, "scale": -0.0}],
        [{"feature": 3, "mode": "multiply", "scale": 1.0}],
        [{"feature": 3, "dictionary": "topk", "scale": 0.0}],
        [{"vector": VECTOR, "scale": 0.0}],
        [{"feature": 3, "scale": 9.0, "positions": "generated", "start": 50}],
        [],
        {},
    ],
)
def test_steering_without_effect_is_bit_identical_to_none(llama: Runtime, steering: Any) -> None:  # noqa: ANN401
    with fresh_engine(llama, start=False) as engine:
        stepper = Stepper(engine)
        for wanted in (steering, [{"feature": 3, "scale": 8.0}], None):
            stepper.submit(ask(llama, LONG + "!", wanted, num_logprobs=259))
        stepper.finish()
        steered, _, plain = (stepper.answer(place) for place in range(3))
    assert steered.token_ids == plain.token_ids
    assert steered.tops == plain.tops


def test_rows_far_apart_in_length_do_not_touch_each_other(llama: Runtime) -> None:
    """A decode step reads as many columns as its longest row needs: those of a long neighbour must change no bit."""
    short = ask(llama, "x", None, max_tokens=30, num_logprobs=3)
    with fresh_engine(llama, start=False) as engine:
        stepper = Stepper(engine)
        stepper.submit(short)
        stepper.finish()
        expected = stepper.answer(0)
        stepper.submit(ask(llama, "y" * 100, [{"feature": 3, "scale": 50.0}], max_tokens=28), short)
        stepper.finish()
        assert stepper.answer(2) == expected


def test_common_seeds_draw_common_noise_whatever_the_steering(llama: Runtime) -> None:
    """Arms of a comparison differ only because of steering: an edit that comes later leaves the tokens before it."""
    late = [{"feature": 3, "scale": 30.0, "positions": "generated", "start": 6}]
    sampling: dict[str, Any] = {"temperature": 1.0, "seed": 11, "max_tokens": 14}
    with fresh_engine(llama, start=False) as engine:
        stepper = Stepper(engine)
        stepper.submit(ask(llama, LONG, None, **sampling), ask(llama, LONG, late, **sampling))
        stepper.finish()
        plain, steered = (stepper.answer(place).token_ids for place in range(2))
    assert plain[:7] == steered[:7]
    assert plain != steered
