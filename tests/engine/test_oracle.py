"""The engine against the thirty-line oracle, on a random Llama and a random GPT-2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.engine.harness import ask, fresh_engine, run
from tests.tiny import D_MODEL, VOCAB_SIZE

if TYPE_CHECKING:
    from steerserve.runtime import Runtime
    from tests.oracle import Oracle

PROMPT = "<|im_start|>user\nTell me ~ about it, please.<|im_end|>\nwell"
NUM_TOKENS = 9
VECTOR = [(-1.0) ** place * (1 + place / 20) for place in range(D_MODEL)]

CASES: dict[str, Any] = {
    "nothing": None,
    "add": [{"feature": 3, "scale": 8.0}],
    "add-negative": [{"feature": 3, "scale": -8.0}],
    "clamp": [{"feature": 5, "mode": "clamp", "scale": 6.0}],
    "multiply": [{"feature": 7, "mode": "multiply", "scale": 4.0}],
    "multiply-negative": [{"feature": 7, "mode": "multiply", "scale": -2.0}],
    "ablate": [{"feature": 9, "mode": "ablate"}],
    "floor": [{"feature": 11, "mode": "floor", "scale": 2.0}],
    "ceiling": [{"feature": 13, "mode": "ceiling", "scale": 0.2}],
    "remove": [{"feature": 15, "mode": "remove"}],
    "prompt": [{"feature": 3, "scale": 8.0, "positions": "prompt"}],
    "generated": [{"feature": 3, "scale": 8.0, "positions": "generated"}],
    "generated-from": [{"feature": 3, "scale": 8.0, "positions": "generated", "start": 4}],
    "generated-until": [{"feature": 3, "scale": 8.0, "positions": "generated", "stop": 3}],
    "generated-between": [{"feature": 3, "scale": 8.0, "positions": "generated", "start": 2, "stop": 5}],
    "special": [{"feature": 3, "scale": 8.0, "special_tokens": True}],
    "special-clamp": [{"feature": 3, "mode": "clamp", "scale": 8.0, "special_tokens": True}],
    "special-remove": [{"feature": 3, "mode": "remove", "special_tokens": True}],
    "strength": {"edits": [{"feature": 5, "mode": "clamp", "scale": 6.0}], "strength": 0.5},
    "strength-negative": {"edits": [{"feature": 3, "scale": 8.0}, {"feature": 15, "mode": "remove"}], "strength": -0.7},
    "several": [
        {"feature": 3, "scale": 4.0},
        {"feature": 5, "mode": "clamp", "scale": 3.0, "positions": "generated"},
        {"feature": 9, "mode": "ablate", "positions": "prompt"},
        {"feature": 15, "mode": "remove", "special_tokens": True},
    ],
    "same-feature": [
        {"feature": 7, "scale": 2.0},
        {"feature": 7, "mode": "multiply", "scale": 3.0},
        {"feature": 7, "mode": "clamp", "scale": 1.0},
        {"feature": 7, "mode": "remove"},
    ],
    "vector": [{"vector": {"hook": "blocks.1.hook_resid_pre", "values": VECTOR}, "scale": 2.0}],
    "vector-remove": [{"vector": {"hook": "blocks.0.hook_resid_pre", "values": VECTOR}, "mode": "remove"}],
    "hook-points": [
        {"feature": 3, "scale": 4.0},
        {"feature": 20, "dictionary": "late", "mode": "clamp", "scale": 5.0},
        {"vector": {"hook": "blocks.0.hook_resid_pre", "values": VECTOR}, "scale": 0.2},
        {"vector": {"hook": "blocks.0.hook_resid_post", "values": VECTOR}, "scale": 0.5, "positions": "generated"},
    ],
    **{
        f"vector-{kind}": [
            {"vector": {"hook": f"blocks.0.{kind}", "values": VECTOR}, "scale": 1.5},
            {"vector": {"hook": f"blocks.1.{kind}", "values": VECTOR}, "mode": "remove", "positions": "generated"},
        ]
        for kind in ("attn.hook_z", "hook_attn_out", "hook_resid_mid", "hook_mlp_out")
    },
    "inside-blocks": [
        {"feature": 3, "dictionary": "z", "scale": 3.0},
        {"feature": 5, "dictionary": "z", "mode": "clamp", "scale": 2.0},
        {"feature": 7, "dictionary": "heads", "mode": "clamp", "scale": 3.0},
        {"vector": {"hook": "blocks.0.hook_attn_out", "values": VECTOR}, "scale": 0.3},
        {"vector": {"hook": "blocks.1.hook_resid_mid", "values": VECTOR}, "scale": 0.3, "positions": "prompt"},
        {"feature": 3, "dictionary": "mlp", "mode": "clamp", "scale": 4.0},
        {"feature": 3, "scale": 4.0},
    ],
    "dictionaries-at-one-hook-point": [
        {"feature": 3, "scale": 4.0},
        {"feature": 3, "dictionary": "jumprelu", "mode": "clamp", "scale": 3.0},
        {"feature": 3, "dictionary": "gated", "mode": "multiply", "scale": 3.0},
        {"feature": 3, "dictionary": "topk", "mode": "clamp", "scale": 3.0},
    ],
    "jumprelu-modes": [
        {"feature": 1, "dictionary": "jumprelu", "mode": "clamp", "scale": 3.0},
        {"feature": 2, "dictionary": "jumprelu", "mode": "multiply", "scale": 3.0},
        {"feature": 3, "dictionary": "jumprelu", "mode": "floor", "scale": 1.0},
        {"feature": 4, "dictionary": "jumprelu", "mode": "ceiling", "scale": 0.5},
    ],
    "gated-modes": [
        {"feature": 1, "dictionary": "gated", "mode": "clamp", "scale": 3.0},
        {"feature": 2, "dictionary": "gated", "mode": "multiply", "scale": 3.0},
        {"feature": 3, "dictionary": "gated", "mode": "floor", "scale": 1.0},
        {"feature": 4, "dictionary": "gated", "mode": "ceiling", "scale": 0.5},
    ],
    "topk-modes": {
        "edits": [
            {"feature": 1, "dictionary": "topk", "mode": "clamp", "scale": 3.0},
            {"feature": 2, "dictionary": "topk", "mode": "multiply", "scale": 3.0},
            {"feature": 3, "dictionary": "topk", "mode": "floor", "scale": 1.0, "positions": "generated", "start": 1},
            {"feature": 4, "dictionary": "topk", "mode": "ceiling", "scale": 0.5, "special_tokens": True},
            {"feature": 5, "dictionary": "topk", "scale": 2.0, "positions": "prompt"},
            {"feature": 6, "dictionary": "topk", "mode": "remove"},
        ],
        "strength": 1.5,
    },
}


@pytest.fixture(params=["llama", "gpt2"])
def both(request: pytest.FixtureRequest) -> tuple[Runtime, Oracle]:
    """Return a runtime and its oracle."""
    return request.getfixturevalue(request.param), request.getfixturevalue(f"{request.param}_oracle")


@pytest.mark.parametrize("name", CASES)
def test_tokens_and_logits_equal_the_oracles(name: str, both: tuple[Runtime, Oracle]) -> None:
    runtime, oracle = both
    request = ask(runtime, PROMPT, CASES[name], max_tokens=NUM_TOKENS, num_logprobs=VOCAB_SIZE)
    [answer] = run(runtime.engine, request)
    token_ids, logits = oracle.generate(request.prompt_ids, CASES[name], NUM_TOKENS)
    assert list(answer.token_ids) == token_ids
    torch.testing.assert_close(answer.all_logprobs(), logits.log_softmax(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [name for name in CASES if name not in {"nothing", "generated-until"}])
def test_every_case_changes_the_logits_it_claims_to_change(name: str, both: tuple[Runtime, Oracle]) -> None:
    """Guards the cases: one that edits nothing would pass the comparison with any engine."""
    _, oracle = both
    ids = both[0].tokenizer.encode_plain(PROMPT + " and so it goes on")
    num_prompt = len(ids) - len(" and so it goes on")
    plain, steered = (oracle.logits(ids, num_prompt, steering) for steering in (None, CASES[name]))
    assert (plain - steered).abs().max() > 1e-2


@pytest.mark.slow
def test_a_batch_of_all_cases_equals_the_oracle_row_by_row(both: tuple[Runtime, Oracle]) -> None:
    runtime, oracle = both
    requests = [ask(runtime, PROMPT + name, case, max_tokens=NUM_TOKENS) for name, case in CASES.items()]
    with fresh_engine(runtime, slots=16) as engine:
        answers = run(engine, *requests)
    for request, case, answer in zip(requests, CASES.values(), answers, strict=True):
        assert list(answer.token_ids) == oracle.generate(request.prompt_ids, case, NUM_TOKENS)[0]


def test_prompt_logprobs_equal_the_oracles(both: tuple[Runtime, Oracle]) -> None:
    runtime, oracle = both
    request = ask(runtime, PROMPT, CASES["several"], max_tokens=0, num_prompt_logprobs=3)
    [[event]] = runtime.engine.generate([request])
    logprobs = oracle.logits(request.prompt_ids, len(request.prompt_ids), CASES["several"]).log_softmax(-1)
    assert event.prompt_logprobs is not None
    assert event.prompt_logprobs[0] is None
    assert len(event.prompt_logprobs) == len(request.prompt_ids)
    for place, entry in enumerate(event.prompt_logprobs[1:], start=1):
        assert entry is not None
        assert entry.token_id == request.prompt_ids[place]
        assert entry.logprob == pytest.approx(float(logprobs[place - 1, entry.token_id]), abs=1e-4)
        assert [token_id for token_id, _ in entry.top] == logprobs[place - 1].topk(3).indices.tolist()


def test_the_receipt_counts_what_the_oracle_edits(llama: Runtime) -> None:
    request = ask(llama, PROMPT, [{"feature": 3, "scale": 8.0}], max_tokens=NUM_TOKENS)
    [answer] = run(llama.engine, request)
    special = sum(token_id >= 256 for token_id in request.prompt_ids)
    sinks = request.prompt_ids.count(ord("~"))
    fed_back = [token_id for token_id in answer.token_ids[:-1] if token_id < 256 and token_id != ord("~")]
    assert answer.receipt is not None
    [edit] = answer.receipt["edits"]
    assert special == 2
    assert sinks == 1
    assert edit["tokens_edited"] == len(request.prompt_ids) - special - sinks + len(fed_back)
    assert edit["tokens_edited"] + edit["tokens_skipped"] == len(request.prompt_ids) + NUM_TOKENS - 1
