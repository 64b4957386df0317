"""Requests of every kind of edit, drawn at random, have the same bits alone and in one batch."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.harness import Stepper, ask, fresh_engine
from tests.engine.transcoders import TRANSCODERS
from tests.tiny import D_MODEL

if TYPE_CHECKING:
    from steerserve.engine.request import GenerationRequest
    from steerserve.runtime import Runtime
    from tests.engine.harness import Answer

EARLY = ["standard", "topk", "jumprelu", "gated", "normalised", "raw", "planted", "z"]
DICTIONARIES = [*EARLY, "late", "heads", "mlp", *TRANSCODERS]
HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.1.hook_mlp_out"]
PROMPTS = ["<|im_start|>user\nA beginning that several share, and ~ a sink in it.<|im_end|>\n", "x", "short ~ one"]
NUM_REQUESTS = 20


def some_edit(draw: random.Random, place: int) -> dict[str, Any]:
    """Draw an edit; each place has a feature of its own, so that no two set the same one."""
    edit: dict[str, Any] = {"special_tokens": draw.random() < 0.2}
    if draw.random() < 0.2:
        values = [draw.gauss(0, 1) for _ in range(D_MODEL)]
        edit["vector"] = {"hook": draw.choice(HOOKS), "values": values}
        edit |= draw.choice([{"scale": 0.2}, {"mode": "remove"}])
        is_late = edit["vector"]["hook"] != HOOKS[0]
    else:
        name = draw.choice(DICTIONARIES)
        edit |= {"feature": place % 16 if name == "planted" else place % 64, "dictionary": name}
        mode = draw.choice(["add", "clamp", "multiply", "ablate", "floor", "ceiling", "remove"])
        edit |= {"mode": mode} if mode in {"ablate", "remove"} else {"mode": mode, "scale": draw.uniform(-2, 4)}
        is_late = name not in {*EARLY, "tc"}
    window = draw.random()
    if window < 0.3:
        edit |= {"positions": "generated", "start": draw.randrange(3), "ramp": draw.randrange(5)}
    elif window < 0.5:
        edit["positions"] = "prompt"
    if draw.random() < 0.5:
        gates = [*EARLY, "tc"] if is_late else ["z"]
        gate = {"feature": draw.randrange(16), "dictionary": draw.choice(gates)}
        edit["when"] = {**gate, draw.choice(["above", "below"]): draw.uniform(-0.1, 1.0)}
    return edit


def some_steering(draw: random.Random) -> Any:  # noqa: ANN401 any spelling
    number = draw.choice([0, 1, 2, 5, 16, 64])
    places = draw.sample(range(64), number)
    edits = [some_edit(draw, place) for place in places]
    setters: set[tuple[object, object]] = set()
    for edit in edits:  # the planted dictionary has few features
        target = edit.get("dictionary"), edit.get("feature")
        if "vector" not in edit and target in setters and edit["mode"] in {"clamp", "ablate", "floor", "ceiling"}:
            edit |= {"mode": "add", "scale": 1.0}
        setters.add(target)
    return {"edits": edits, "strength": draw.choice([1.0, 0.3, -0.5])} if edits else None


def some_requests(runtime: Runtime, seed: int) -> list[GenerationRequest]:
    draw = random.Random(seed)
    requests = []
    for _ in range(NUM_REQUESTS):
        steering = some_steering(draw)
        prompt = draw.choice(PROMPTS)
        sampling: dict[str, Any] = {"temperature": draw.choice([0.0, 1.0]), "seed": draw.randrange(100)}
        requests.append(ask(runtime, prompt, steering, max_tokens=draw.randrange(1, 12), num_logprobs=2, **sampling))
    return requests


def answers(runtime: Runtime, requests: list[GenerationRequest], *, slots: int, chunk: int) -> list[Answer]:
    with fresh_engine(runtime, slots=slots, chunk=chunk, start=False) as engine:
        stepper = Stepper(engine)
        stepper.submit(*requests)
        stepper.finish()
        return [stepper.answer(place) for place in range(len(requests))]


@pytest.mark.parametrize(("seed", "slots", "chunk"), [(0, 16, 16), (1, 5, 7), (2, 16, 64), (3, 3, 16)])
def test_any_mix_of_edits_leaves_every_request_its_bits(
    transcoding: Runtime, seed: int, slots: int, chunk: int
) -> None:
    requests = some_requests(transcoding, seed)
    together = answers(transcoding, requests, slots=slots, chunk=chunk)
    for request, found in zip(requests, together, strict=True):
        [alone] = answers(transcoding, [request], slots=1, chunk=chunk)
        assert found == alone, request.steering


def test_requests_that_write_the_same_edits_in_another_order_share_a_prompt_and_have_the_same_bits(
    transcoding: Runtime,
) -> None:
    draw = random.Random(7)
    edits = [some_edit(draw, place) for place in range(30)]
    later = {"feature": 3, "scale": 2.0, "positions": "generated", "start": 30}
    orders = [edits, edits[::-1], [later, *draw.sample(edits, len(edits))]]
    requests = [ask(transcoding, PROMPTS[0], order, num_logprobs=3) for order in orders]
    together = answers(transcoding, requests, slots=4, chunk=16)
    for request, found in zip(requests, together, strict=True):
        [alone] = answers(transcoding, [request], slots=1, chunk=16)
        assert found == alone
    assert len({found.tops for found in together}) == 1


@pytest.mark.parametrize("bound", [{"above": 1e6}, {"below": -1.0}])
def test_gates_that_never_pass_leave_the_bits_of_no_steering(transcoding: Runtime, bound: dict[str, float]) -> None:
    draw = random.Random(3)
    edits = [
        {**some_edit(draw, place), "when": {"feature": place % 16, "dictionary": "z", **bound}} for place in range(64)
    ]
    requests = [ask(transcoding, PROMPTS[0], steering, num_logprobs=259) for steering in (edits, None)]
    closed, plain = answers(transcoding, requests, slots=4, chunk=16)
    assert closed.tops == plain.tops
    assert closed.token_ids == plain.token_ids
    assert closed.receipt is not None
    for edit in closed.receipt["edits"]:
        assert (edit["tokens_edited"], edit["gate"]["tokens_passed"], edit["mean_change"]) == (0, 0, 0)
