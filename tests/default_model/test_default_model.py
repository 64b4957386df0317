"""What must hold for the model that people run first: isolation, zero edits and the logits of plain transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.engine.harness import Stepper, ask, fresh_engine, run

if TYPE_CHECKING:
    from steerserve.engine.request import GenerationRequest
    from steerserve.runtime import Runtime
    from tests.oracle import Oracle

pytestmark = pytest.mark.real_model

HOOK_NAME = "blocks.17.hook_resid_post"
QUESTION = [{"role": "user", "content": "Tell me something about the sea, in two sentences."}]
CONTEXT = 1024


def chat(runtime: Runtime, steering: Any = None, **kwargs: Any) -> GenerationRequest:  # noqa: ANN401
    return ask(runtime, runtime.tokenizer.render_chat(QUESTION), steering, **kwargs)


def neighbours(runtime: Runtime) -> list[GenerationRequest]:
    """Return fifteen requests with edits of every kind, one of them long."""
    steerings: list[Any] = [
        [{"feature": place, "scale": 20.0 + place}, {"feature": place + 40, "mode": "remove"}] for place in range(12)
    ]
    steerings += [[{"feature": place, "mode": "clamp", "scale": 9.0} for place in range(32)]]
    steerings += [[{"vector": {"hook": "blocks.3.hook_resid_pre", "values": [1.0] * 576}, "scale": 30.0}]]
    requests = [
        ask(runtime, f"Neighbour {place} says", steering, max_tokens=8, temperature=place % 2, seed=place)
        for place, steering in enumerate(steerings)
    ]
    return [*requests, ask(runtime, "a long story " * 172, [{"feature": 5, "scale": 500.0}], max_tokens=12)]


def test_a_request_has_the_same_bits_alone_and_among_fifteen_others(default_runtime: Runtime) -> None:
    mine = [
        chat(default_runtime, None, max_tokens=9, num_logprobs=3),
        chat(default_runtime, [{"feature": 7, "scale": 40.0}], max_tokens=7, num_logprobs=3, temperature=0.8, seed=3),
    ]
    expected = []
    for request in mine:
        with fresh_engine(default_runtime, slots=16, chunk=64, context=CONTEXT, start=False) as engine:
            stepper = Stepper(engine)
            stepper.submit(request)
            stepper.finish()
            expected.append(stepper.answer(0))
    others = neighbours(default_runtime)
    with fresh_engine(default_runtime, slots=16, chunk=64, context=CONTEXT, start=False) as engine:
        stepper = Stepper(engine)
        stepper.submit(*others[:7], mine[0], *others[7:])
        for _ in range(11):  # the long prompt is read and decodes before the second arrives
            stepper.step()
        [late] = stepper.submit(mine[1])
        stepper.abort(3)
        stepper.finish()
        assert stepper.answer(7) == expected[0]
        assert stepper.answer(late) == expected[1]


@pytest.mark.parametrize(
    "steering",
    [
        {"edits": [{"feature": 3, "mode": "clamp", "scale": 90.0}, {"feature": 4, "mode": "remove"}], "strength": 0},
        [{"feature": 3, "scale": 0.0}, {"feature": 4, "mode": "multiply", "scale": 1.0}],
    ],
)
def test_edits_of_no_strength_are_bit_identical_to_none(default_runtime: Runtime, steering: Any) -> None:  # noqa: ANN401
    with fresh_engine(default_runtime, slots=4, chunk=64, context=CONTEXT) as engine:
        steered, _, plain = run(
            engine,
            *(
                chat(default_runtime, wanted, max_tokens=5, num_logprobs=50)
                for wanted in (steering, [{"feature": 3, "scale": 50.0}], None)
            ),
        )
    assert (steered.token_ids, steered.tops) == (plain.token_ids, plain.tops)


STEERINGS: dict[str, Any] = {
    "plain": None,
    "feature": [{"feature": 7, "scale": 30.0}, {"feature": 9, "mode": "clamp", "scale": 20.0}],
    "everything": {
        "edits": [
            {"feature": 11, "mode": "remove"},
            {"feature": 7, "mode": "floor", "scale": 25.0, "positions": "generated", "start": 1},
            {"vector": {"hook": "blocks.3.hook_resid_pre", "values": [0.1] * 576}, "scale": 3.0, "positions": "prompt"},
        ],
        "strength": 0.8,
    },
}


@pytest.mark.parametrize("name", STEERINGS)
def test_the_logits_are_those_of_plain_transformers(
    default_runtime: Runtime, default_oracle: Oracle, name: str
) -> None:
    request = chat(default_runtime, STEERINGS[name], max_tokens=5, num_logprobs=49152, num_prompt_logprobs=0)
    [answer] = run(default_runtime.engine, request)
    text = [*request.prompt_ids, *answer.token_ids]
    logprobs = default_oracle.logits(text, len(request.prompt_ids), STEERINGS[name]).log_softmax(-1)
    num_prompt = len(request.prompt_ids)
    torch.testing.assert_close(answer.all_logprobs(), logprobs[num_prompt - 1 : -1], atol=1e-3, rtol=0)
    assert answer.prompt_logprobs is not None
    for place, entry in enumerate(answer.prompt_logprobs[1:], start=1):
        assert entry is not None
        assert entry.logprob == pytest.approx(float(logprobs[place - 1, text[place]]), abs=1e-3)


def test_its_first_token_is_a_sink_that_edits_leave_alone(default_runtime: Runtime) -> None:
    """Position 0 is a thousand times as long as others there: an edit that reached it would break every answer."""
    ids = default_runtime.tokenizer.encode_plain("Ships sail on the sea")
    norms = default_runtime.lens.read(torch.tensor([ids]), [HOOK_NAME])[HOOK_NAME][0].norm(dim=-1)
    assert norms[0] > 20 * norms[1:].max()
    [answer] = run(default_runtime.engine, ask(default_runtime, ids, [{"feature": 7, "scale": 5.0}], max_tokens=1))
    assert answer.receipt is not None
    [edit] = answer.receipt["edits"]
    assert (edit["tokens_edited"], edit["tokens_skipped"]) == (len(ids) - 1, 1)
